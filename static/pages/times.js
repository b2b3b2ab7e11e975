// The times of a page that has no other script, in the visitor's time zone.

import { localise } from "../ui/dom.js";

for (const time of document.querySelectorAll("section.content time")) localise(time);
