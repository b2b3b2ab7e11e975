CLIENTS = ["drizzle", "kysely", "knex"]
