// The editor of the plan, on a text that the server may change, too: `shared_text` says how the two agree.

export default {
  template: "<div></div>",
  props: { told: Object, session: String, most: Number },
  watch: {
    told() {
      this.hear();
    },
  },
  async mounted() {
    const CM = (this.CM = await import("nicegui-codemirror"));
    const { SharedText } = await import("brainsurgery-shared-text");
    this.fromServer = CM.Annotation.define();
    this.setMarks = CM.StateEffect.define();
    this.shared = new SharedText(this.told, this.takeLeft());
    const language = new CM.Compartment();
    const completion = [{ autocomplete: (context) => this.complete(context) }]; // the same function at each call
    this.view = new CM.EditorView({
      doc: this.shared.text,
      parent: this.$el,
      extensions: [
        CM.basicSetup,
        CM.themes.basicLight,
        CM.keymap.of([CM.indentWithTab]),
        CM.indentUnit.of("  "),
        CM.EditorView.lineWrapping,
        CM.EditorView.contentAttributes.of({ "aria-label": "Plan in YAML" }),
        CM.EditorView.theme({ "&": { height: "100%" }, ".cm-scroller": { overflow: "auto" } }),
        CM.EditorState.changeFilter.of((change) => this.fits(change)),
        CM.EditorView.updateListener.of((update) => this.note(update)),
        CM.EditorState.languageData.of(() => completion),
        language.of([]),
        this.showMarks(CM),
      ],
    });
    this.hear();
    const yaml = CM.languages.find((one) => one.name === "YAML");
    yaml.load().then((found) => this.view?.dispatch({ effects: language.reconfigure(found) }));
    // What was sent while the connection broke may not have arrived.
    this.resend = () => this.shared.pending.length && this.send();
    window.socket?.on("connect", this.resend);
    window.addEventListener("pagehide", this.leave);
    this.resend(); // what the page before this one left
  },
  beforeUnmount() {
    if (!this.view) return;
    window.socket?.off("connect", this.resend);
    window.removeEventListener("pagehide", this.leave);
    this.leave();
    this.view.destroy();
    this.view = null;
  },
  methods: {
    // A page that the server no longer knows loads itself anew: what it has not heard of goes over to the next page.
    leave() {
      const key = `plan of ${this.session}`;
      if (this.shared.pending.length) sessionStorage.setItem(key, JSON.stringify(this.shared.leave()));
      else sessionStorage.removeItem(key);
    },
    takeLeft() {
      const key = `plan of ${this.session}`;
      const left = sessionStorage.getItem(key);
      sessionStorage.removeItem(key);
      return left && JSON.parse(left);
    },
    // Whether the text may become what a change makes of it.
    fits(change) {
      const length = change.newDoc.length;
      if (change.annotation(this.fromServer) || length <= this.most || length < change.startState.doc.length) return true;
      const most = this.most.toLocaleString("en-US");
      const message = `A plan may have ${most} characters here. Run a longer one on the command line.`;
      Quasar.Notify.create({ message, type: "negative" });
      return false;
    },
    // The user's changes: remember and send them.
    note(update) {
      let typed = false;
      for (const one of update.transactions) {
        if (!one.docChanged || one.annotation(this.fromServer)) continue;
        this.shared.note(one.changes);
        typed = true;
      }
      if (typed) this.send();
    },
    send() {
      for (const message of this.shared.messages()) this.$emit("typed", message);
    },
    // What the server tells: its text becomes ours, under the changes that it does not know.
    hear() {
      if (!this.view) return;
      const { theirs, again } = this.shared.hear(this.told);
      const spec = { annotations: this.fromServer.of(true) };
      if (theirs) spec.changes = theirs;
      if (this.told.marks) spec.effects = this.setMarks.of(this.place(this.told.marks));
      this.view.dispatch(spec);
      if (again) this.send();
    },
    // Marks of lines of the server's text, where these lines are now.
    place(marks) {
      const { Decoration } = this.CM;
      const { shadow, mine } = this.shared;
      const found = Object.entries(marks)
        .filter(([line]) => line <= shadow.lines)
        .map(([line, message]) =>
          Decoration.line({ class: "bs-line-error", message }).range(shadow.line(Number(line)).from),
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
