"""The little JavaScript of the page: labels for screen readers, what a broken connection blocks, and uploads."""

from __future__ import annotations

SCRIPTS = """<input type="file" id="pick-files" multiple hidden aria-label="Files to upload">
<input type="file" id="pick-folder" webkitdirectory hidden aria-label="Folder to upload">
<div id="not-connected" role="alert" hidden></div>
<script>
// These take no label of ours, and a screen reader needs one.
const labels = {'.q-loading-bar': 'Loading', '.cm-tooltip-autocomplete ul': 'Completions'};
const give = () => Object.entries(labels).forEach(([place, text]) => document.querySelectorAll(place).forEach(
    (element) => element.getAttribute('aria-label') || element.setAttribute('aria-label', text)));
new MutationObserver(give).observe(document.body, {childList: true, subtree: true});

// Clicks and fields are sent over the connection, once. While there is none they are blocked, but for the editor, which
// sends its text again. What is on its way when the connection breaks may be lost: say so.
const offline = {
    banner: document.getElementById('not-connected'),
    watch(socket) {
        const emit = socket.emit, unheard = new Set(), key = 'a click may be lost';
        let sent = 0;
        const ofEditor = (message) => document.getElementById(`c${message.id}`)?.classList.contains('bs-editor');
        socket.emit = function (name, ...args) {
            if (name !== 'event' || ofEditor(args[0])) return emit.call(this, name, ...args);
            const number = ++sent;
            unheard.add(number);
            return emit.call(this, name, ...args, () => unheard.delete(number));
        };
        socket.on('disconnect', () => {
            if (unheard.size) sessionStorage.setItem(key, 'yes');
            unheard.clear();
            document.body.classList.add('bs-not-connected');
            this.banner.textContent =
                'Not connected. Only the text of the plan can be changed until the connection is back. ' +
                'If the server was started again, copy that text, and open the URL that it printed.';
            this.banner.hidden = false;
        });
        const back = () => {
            document.body.classList.remove('bs-not-connected');
            this.banner.hidden = true;
            this.banner.textContent = '';
            if (sessionStorage.getItem(key) === null) return;
            sessionStorage.removeItem(key);
            const message = 'The connection broke. What you did last may not have arrived: look before you repeat it.';
            Quasar.Notify.create({message, type: 'warning', timeout: 0, actions: [{label: 'Close', color: 'black'}]});
        };
        if (socket.connected) back();
        socket.on('connect', back);
    },
    block(event) {
        const gone = document.body.classList.contains('bs-not-connected');
        if (!gone || event.target.closest?.('.cm-editor')) return;
        if (event.type === 'keydown' && !['Enter', ' '].includes(event.key)) return;
        event.preventDefault();
        event.stopImmediatePropagation();
    },
};
['click', 'pointerdown', 'mousedown', 'touchstart', 'keydown', 'beforeinput', 'change'].forEach(
    (type) => window.addEventListener(type, offline.block, {capture: true, passive: false}));
const found = setInterval(() => window.socket && (clearInterval(found), offline.watch(window.socket)), 20);

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
