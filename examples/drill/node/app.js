// A small shop in Node.js and mysql2: `npm install`, then `unbroken drill` in this folder.
//
//   VARIANT=connection   one connection for the process
//   VARIANT=pool         mysql2's pool as it comes
const http = require("node:http");
const mysql = require("mysql2/promise");

const url = process.env.DATABASE_URL;

async function main() {
  const database = process.env.VARIANT === "connection" ? await mysql.createConnection(url) : mysql.createPool(url);
  // without a listener, an error on an idle connection would end the process
  if (process.env.VARIANT === "connection") database.on("error", (error) => console.error(error.message));

  const server = http.createServer(async (request, response) => {
    try {
      const [rows] = await database.query("SELECT id, name FROM items ORDER BY id DESC LIMIT 10");
      response.setHeader("Content-Type", "application/json");
      response.end(JSON.stringify({ items: rows }));
    } catch (error) {
      response.statusCode = 500;
      response.end(`${error.code}: ${error.message}`);
    }
  });
  server.listen(Number(process.env.PORT), "127.0.0.1");
}

main();
