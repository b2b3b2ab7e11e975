// The address of a database's page in Datasette.

/** The address of Datasette and the name of the database. Throws a `TypeError` if the address cannot be one. */
export function databaseOf(address: string | URL): { baseUrl: string; database: string } {
  const url = URL.canParse(address.toString()) ? new URL(address) : undefined;
  const path = url?.pathname.replace(/\/+$/, "") ?? "";
  const at = path.lastIndexOf("/");
  const database = withoutTildes(path.slice(at + 1));
  if (url === undefined || !/^https?:$/.test(url.protocol) || !database) {
    throw new TypeError(`${address} is not the address of a database, like http://127.0.0.1:8001/data`);
  }
  return { baseUrl: url.origin + path.slice(0, at), database };
}

/** Datasette writes most characters of a name in an address as ~ and their hexadecimal number, and a space as +. */
function withoutTildes(segment: string): string {
  try {
    return decodeURIComponent(segment.replaceAll("+", " ").replaceAll("%", "%25").replaceAll("~", "%"));
  } catch {
    return "";
  }
}
