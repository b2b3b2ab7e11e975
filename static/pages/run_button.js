// The button of a query's form. A query with publish_batch in it is sent as a POST, which the browser does not send
// again by itself: see pages/runs.py. All other queries go their usual way.

const stored = document.querySelector(".pubsub-run")?.dataset.action;

/** Where the form's query is run, when it publishes; null when it does not. */
function target(form) {
  const sql = new FormData(form).get("sql");
  if (sql === null) return stored ?? null;
  if (!/publish_batch/i.test(sql)) return null;
  const base = new URL(form.dataset.action, document.baseURI).pathname.replace(/\/-\/query$/, "");
  return `${base}/-/pubsub/-/run`;
}

for (const form of document.querySelectorAll("form.sql[method=get]")) {
  form.dataset.action = form.getAttribute("action");
  // Datasette's editor sends the form by a shortcut, without the event that tells of it.
  form.submit = () => form.requestSubmit();
}

// Around the editor's own listener, which writes what was typed into the form.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.dataset.action === undefined || event.defaultPrevented) return;
  const path = target(form);
  form.method = path === null ? "get" : "post";
  form.action = path ?? form.dataset.action;
  if (path === null) return;
  // A double click is one.
  if (form.dataset.running) event.preventDefault();
  form.dataset.running = "1";
});

// The page may come back as it was left.
addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("form.sql")) delete form.dataset.running;
});
