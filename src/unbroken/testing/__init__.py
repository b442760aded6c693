"""What unbroken is tested with, public so that its users can test with it too."""
