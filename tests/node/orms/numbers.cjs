// better-sqlite3 binds every JavaScript number as a REAL, and `payload` has no type.
const db = require("better-sqlite3")(process.argv[2]);
const publish = db.prepare("INSERT INTO vpubsub (channel, payload) VALUES ('numbers', ?)");
const published = [5, 1700000000000, -3, 0, 2.5, 9007199254740991, 5n].map((number) => publish.run(number));
const stored = db.prepare("SELECT DISTINCT typeof(payload) FROM vpubsub WHERE channel = 'numbers'").pluck().all();
console.log(JSON.stringify({ published, stored }));
