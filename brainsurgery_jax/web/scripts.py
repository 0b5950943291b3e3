"""The little JavaScript of the page: labels for screen readers, uploads, and completion in the editor."""

from __future__ import annotations

SCRIPTS = """<input type="file" id="pick-files" multiple hidden aria-label="Files to upload">
<input type="file" id="pick-folder" webkitdirectory hidden aria-label="Folder to upload">
<script>
// The editor and the loading bar take no label of ours, and a screen reader needs one.
const labels = {'.cm-content': 'Plan in YAML', '.q-loading-bar': 'Loading',
    '.cm-tooltip-autocomplete ul': 'Completions'};
const give = () => Object.entries(labels).forEach(([place, text]) => document.querySelectorAll(place).forEach(
    (element) => element.getAttribute('aria-label') || element.setAttribute('aria-label', text)));
new MutationObserver(give).observe(document.body, {childList: true, subtree: true});

const pick = (kind) => document.getElementById(`pick-${kind}`).click();

// One request for each file, whose body is the file: nothing is held in memory.
async function upload(files) {
    const done = [], refused = [];
    for (const file of files) {
        const path = file.webkitRelativePath || file.name;
        if (path.split('/').some((part) => part.startsWith('.'))) continue;
        emitEvent('uploading', `uploading ${path} (${done.length + refused.length + 1} of ${files.length}) ...`);
        const told = (reason) => refused.push(`${path}: ${reason}`);
        try {
            const answer = await fetch(`/upload?path=${encodeURIComponent(path)}`, {method: 'PUT', body: file});
            if (answer.ok) done.push(await answer.text()); else told(await answer.text());
        } catch (error) { told('the server ended the upload, as it does with files over --upload-limit'); }
    }
    emitEvent('uploaded', {done, refused});
}
for (const kind of ['files', 'folder']) {
    const input = document.getElementById(`pick-${kind}`);
    input.addEventListener('change', () => upload([...input.files]).then(() => { input.value = ''; }));
}

// What may stand at the cursor is asked of the server, which knows the ops and the names of tensors.
async function completePlan(id, key) {
    const CM = await import('nicegui-codemirror');
    while (!window.getElement?.(id)?.editorPromise)  // the page is still being built
        await new Promise((done) => requestAnimationFrame(done));
    const editor = await getElement(id).editorPromise;
    const source = async (context) => {
        if (!context.explicit) return null;  // Enter would take what was not asked for
        const body = context.state.sliceDoc(0, context.pos);
        const answer = await fetch(`/complete/${key}`, {method: 'POST', body});
        if (!answer.ok || context.aborted) return null;
        const found = await answer.json();
        if (!found.length) return null;
        const from = context.pos + Math.min(...found.map((one) => one.start));
        return {from, filter: false, options: found.map((one) => ({
            label: one.label, detail: one.detail,
            apply: (view, completion, start, end) => {
                const at = context.pos + one.start;
                view.dispatch({changes: {from: at, to: end, insert: one.text},
                               selection: {anchor: at + one.text.length}, userEvent: 'input.complete'});
            },
        }))};
    };
    editor.dispatch({effects: CM.StateEffect.appendConfig.of(
        CM.EditorState.languageData.of(() => [{autocomplete: source}]))});
}
</script>"""
