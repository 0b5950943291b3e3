"""The little JavaScript of the page: labels for screen readers and uploads."""

from __future__ import annotations

SCRIPTS = """<input type="file" id="pick-files" multiple hidden aria-label="Files to upload">
<input type="file" id="pick-folder" webkitdirectory hidden aria-label="Folder to upload">
<script>
// These take no label of ours, and a screen reader needs one.
const labels = {'.q-loading-bar': 'Loading', '.cm-tooltip-autocomplete ul': 'Completions'};
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
</script>"""
