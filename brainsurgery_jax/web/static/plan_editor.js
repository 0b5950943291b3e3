// The editor of the plan. The server and the user may change the text at the same time, and no change of either is
// lost. The editor numbers the user's changes and sends the text with each. The server tells the last number that it
// knows (`base`) and its text, with a number (`id`) that grows when it changes the text itself. The editor keeps the
// changes that the server does not know yet (`pending`), and moves those of the server over them, and them over those.

export default {
  template: "<div></div>",
  props: { told: Object, session: String },
  watch: {
    told() {
      this.hear();
    },
  },
  async mounted() {
    const CM = (this.CM = await import("nicegui-codemirror"));
    this.fromServer = CM.Annotation.define();
    this.setMarks = CM.StateEffect.define();
    this.pending = [];
    this.number = this.told.base;
    this.after = this.told.id;
    this.shadow = this.read(this.told.text);
    const language = new CM.Compartment();
    const completion = [{ autocomplete: (context) => this.complete(context) }]; // the same function at each call
    this.view = new CM.EditorView({
      doc: this.shadow,
      parent: this.$el,
      extensions: [
        CM.basicSetup,
        CM.themes.basicLight,
        CM.keymap.of([CM.indentWithTab]),
        CM.indentUnit.of("  "),
        CM.EditorView.contentAttributes.of({ "aria-label": "Plan in YAML" }),
        CM.EditorView.theme({ "&": { height: "100%" }, ".cm-scroller": { overflow: "auto" } }),
        CM.EditorView.updateListener.of((update) => this.note(update)),
        CM.EditorState.languageData.of(() => completion),
        language.of([]),
        this.showMarks(CM),
      ],
    });
    this.hear();
    const yaml = CM.languages.find((one) => one.name === "YAML");
    yaml.load().then((found) => this.view.dispatch({ effects: language.reconfigure(found) }));
    // What was sent while the connection broke may not have arrived.
    window.socket?.on("connect", () => this.pending.length && this.send());
  },
  beforeUnmount() {
    const element = mounted_app.elements[this.$el.id.slice(1)];
    if (!this.view || !element) return;
    const text = this.view.state.doc.toString();
    element.props.told = { base: this.number, id: this.after, text, marks: this.told.marks };
    this.view.destroy();
  },
  methods: {
    read(text) {
      return this.CM.Text.of(text.split(/\r\n?|\n/));
    },
    // The user's changes: remember and send them.
    note(update) {
      let typed = false;
      for (const one of update.transactions) {
        if (!one.docChanged || one.annotation(this.fromServer)) continue;
        this.pending.push({ number: ++this.number, changes: one.changes });
        typed = true;
      }
      if (typed) this.send();
    },
    send() {
      this.$emit("typed", { number: this.number, after: this.after, text: this.view.state.doc.toString() });
    },
    mine() {
      return this.pending.map((one) => one.changes).reduce((all, one) => (all ? all.compose(one) : one), null);
    },
    // What the server tells: its text becomes ours, under the changes that it does not know.
    hear() {
      if (!this.view) return;
      const { base, id, text, marks } = this.told;
      while (this.pending.length && this.pending[0].number <= base)
        this.shadow = this.pending.shift().changes.apply(this.shadow);
      this.after = id;
      let mine = this.mine();
      const theirs = this.difference(this.shadow, this.read(text));
      const spec = { annotations: this.fromServer.of(true) };
      if (theirs) {
        this.shadow = theirs.apply(this.shadow);
        spec.changes = mine ? theirs.map(mine) : theirs;
        mine = mine && mine.map(theirs, true);
        this.pending = mine ? [{ number: ++this.number, changes: mine }] : [];
      }
      if (marks) spec.effects = this.setMarks.of(this.place(marks, mine));
      this.view.dispatch(spec);
      if (theirs && mine) this.send();
    },
    // The change from one text to another: the part between their common beginning and end. None if they are equal.
    difference(before, after) {
      const [old, now] = [before.toString(), after.toString()];
      if (old === now) return null;
      let [from, end, to] = [0, old.length, now.length];
      while (from < end && from < to && old[from] === now[from]) from++;
      while (end > from && to > from && old[end - 1] === now[to - 1]) end--, to--;
      return this.CM.ChangeSet.of({ from, to: end, insert: this.read(now.slice(from, to)) }, old.length);
    },
    // Marks of lines of the server's text, where these lines are now.
    place(marks, mine) {
      const { Decoration } = this.CM;
      const found = Object.entries(marks)
        .filter(([line]) => line <= this.shadow.lines)
        .map(([line, message]) =>
          Decoration.line({ class: "bs-line-error", message }).range(this.shadow.line(Number(line)).from),
        );
      const set = Decoration.set(found, true);
      return mine ? set.map(mine) : set;
    },
    showMarks(CM) {
      const setMarks = this.setMarks;
      const field = CM.StateField.define({
        create: () => CM.Decoration.none,
        update: (set, change) =>
          change.effects.reduce((last, one) => (one.is(setMarks) ? one.value : last), set.map(change.changes)),
        provide: (field) => CM.EditorView.decorations.from(field),
      });
      const tooltip = CM.hoverTooltip((view, at) => {
        const line = view.state.doc.lineAt(at);
        let message = null;
        view.state.field(field).between(line.from, line.from, (from, to, mark) => {
          message = mark.spec.message;
        });
        const create = () => ({ dom: Object.assign(document.createElement("div"), { textContent: message }) });
        return message && { pos: line.from, above: true, create };
      });
      return [field, tooltip];
    },
    // What may stand at the cursor is asked of the server, which knows the ops and the names of tensors.
    async complete(context) {
      if (!context.explicit) return null; // Enter would take what was not asked for
      const body = context.state.sliceDoc(0, context.pos);
      const answer = await fetch(`/complete/${this.session}`, { method: "POST", body });
      const found = await answer.json();
      if (!found.length) return null;
      const from = context.pos + Math.min(...found.map((one) => one.start));
      const options = found.map((one) => ({
        label: one.label,
        detail: one.detail,
        apply: (view, completion, start, end) => {
          const at = context.pos + one.start;
          const selection = { anchor: at + one.text.length };
          view.dispatch({ changes: { from: at, to: end, insert: one.text }, selection, userEvent: "input.complete" });
        },
      }));
      return { from, filter: false, options };
    },
  },
};
