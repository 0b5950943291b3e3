// A text that the user and the server may change at the same time: the browser's side, without an editor. The server's
// is `web/shared_text.py`.
//
// The browser numbers the user's changes and sends the text with each. The server tells its text, the revision that this
// is, and the last number that it took of each writer (`heard`). A change is taken only if nobody else has changed the
// text since the revision that it was made on (`after`). The browser keeps the changes that the server is not known to
// have (`pending`); it moves them over the changes of others, and sends them again.

import { ChangeSet, Text } from "nicegui-codemirror";

// The longest piece of a text in a message: NiceGUI takes messages of a million characters, of which a control
// character takes six.
const PIECE = 100_000;

export const read = (text) => Text.of(text.split(/\r\n?|\n/));

export class SharedText {
  // `left` is what the text of an earlier page of this window left behind.
  constructor(told, left) {
    this.writer = left?.writer ?? Array.from(crypto.getRandomValues(new Uint32Array(3)), (one) => one.toString(36)).join("");
    this.number = left?.number ?? 0;
    this.pending = (left?.pending ?? []).map(({ number, changes }) => ({ number, changes: ChangeSet.fromJSON(changes) }));
    this.shadow = read(left?.shadow ?? told.text); // the server's text, as far as it is known
    this.after = told.revision;
  }

  // What a later page of this window needs to go on. Plain data.
  leave() {
    const pending = this.pending.map(({ number, changes }) => ({ number, changes: changes.toJSON() }));
    return { writer: this.writer, number: this.number, pending, shadow: this.shadow.toString() };
  }

  // The changes that the server is not known to have, as one; null if there are none.
  get mine() {
    return this.pending.map((one) => one.changes).reduce((all, one) => (all ? all.compose(one) : one), null);
  }

  // The text as the user sees it.
  get text() {
    return this.mine ? this.mine.apply(this.shadow) : this.shadow;
  }

  // Take note of a change of the user.
  note(changes) {
    this.pending.push({ number: ++this.number, changes });
  }

  // The text in messages for the server, in their order.
  messages() {
    const { writer, number, after } = this;
    const pieces = cut(this.text.toString());
    return pieces.map((piece, at) => ({ writer, number, after, piece, at, of: pieces.length }));
  }

  // Take what the server tells. `theirs` is the change that brings the user's text up to date, null if there is none;
  // `again` is whether the user's changes must be sent again.
  hear(told) {
    const known = told.heard[this.writer] ?? 0;
    while (this.pending.length && this.pending[0].number <= known)
      this.shadow = this.pending.shift().changes.apply(this.shadow);
    const moved = this.after !== told.revision;
    this.after = told.revision;
    const mine = this.mine;
    const theirs = difference(this.shadow.toString(), read(told.text).toString());
    if (!theirs) return { theirs, again: moved && mine !== null };
    this.shadow = theirs.apply(this.shadow);
    if (!mine) return { theirs, again: false };
    this.pending = [{ number: ++this.number, changes: mine.map(theirs, true) }];
    return { theirs: theirs.map(mine), again: true };
  }
}

// A text in pieces that JSON can hold: none ends within a pair of surrogates.
function cut(text) {
  const pieces = [];
  let from = 0;
  do {
    let to = Math.min(from + PIECE, text.length);
    if (to < text.length && (text.charCodeAt(to - 1) & 0xfc00) === 0xd800) to++;
    pieces.push(text.slice(from, to));
    from = to;
  } while (from < text.length);
  return pieces;
}

// The change from one text to another, null if they are equal: the lines between their common beginning and end, so
// that what moves over it stays between lines, or a part of a line.
export function difference(old, now) {
  if (old === now) return null;
  const [lines, others] = [old, now].map((text) => text.split("\n").map((line) => line + "\n"));
  const same = commonEnds(lines, others);
  const length = (all) => all.join("").length;
  let from = length(lines.slice(0, same.start));
  let [end, to] = [lines, others].map((all) => length(all.slice(0, all.length - same.end)));
  if (end > old.length) [from, end, to] = [Math.max(from - 1, 0), end - 1, to - 1]; // the last line has no end of its own
  if (lines.length - same.end === same.start + 1 && others.length - same.end === same.start + 1) {
    const inner = commonEnds(old.slice(from, end), now.slice(from, to));
    [from, end, to] = [from + inner.start, end - inner.end, to - inner.end];
  }
  return ChangeSet.of({ from, to: end, insert: read(now.slice(from, to)) }, old.length);
}

// How many items two lists, or characters two texts, have in common at the start, and then at the end.
function commonEnds(one, other) {
  const most = Math.min(one.length, other.length);
  let [start, end] = [0, 0];
  while (start < most && one[start] === other[start]) start++;
  while (end < most - start && one[one.length - 1 - end] === other[other.length - 1 - end]) end++;
  return { start, end };
}
