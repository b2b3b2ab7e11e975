/**
 * Slides: rows that are pushed down by new rows move there smoothly, instead of jumping.
 *
 * The rows keep their place on the screen when the new ones are added, by a transform, and then move by a transition of
 * it, which the style sheets have. So an update changes no layout that a visitor sees, and the eye keeps its line.
 *
 * @module ui/slide
 */

export class Slide {
  #frame = 0;
  /** The elements that are to begin to move with the next frame. */ #waiting = new Set();

  /**
   * Make a change that moves elements, and let them begin at the place where they were.
   * @param {Iterable<HTMLElement>} moved elements that the change moves, all by the same way
   * @param {Element} anchor one of them, or an element in one of them, by which the way is measured
   * @param {() => void} change
   */
  run(moved, anchor, change) {
    const before = anchor.getBoundingClientRect().top;
    const elements = [...moved];
    for (const { style } of elements) {
      style.transition = "none";
      style.transform = "";
    }
    change();
    const way = before - anchor.getBoundingClientRect().top;
    if (way === 0) return;
    for (const element of elements) {
      element.style.transform = `translateY(${way}px)`;
      this.#waiting.add(element);
    }
    cancelAnimationFrame(this.#frame);
    // The first frame paints the elements where they were; the transition begins with the second.
    this.#frame = requestAnimationFrame(() => {
      this.#frame = requestAnimationFrame(() => this.#begin());
    });
  }

  #begin() {
    for (const { style } of this.#waiting) {
      style.transition = "";
      style.transform = "translateY(0)";
    }
    this.#waiting.clear();
  }
}
