/** What outlives the tab: controls in localStorage, pictures in IndexedDB. */

const CONTROLS = "ediffi-studio";

/** Controls as they were kept, `{}` at a first visit. */
export function readControls() {
  return JSON.parse(localStorage.getItem(CONTROLS) ?? "{}");
}

export function writeControls(controls) {
  localStorage.setItem(CONTROLS, JSON.stringify(controls));
}

const answered = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

/** Pictures in IndexedDB: `kept` by name, and `results` by id. */
export class Pictures {
  static async open() {
    const opening = indexedDB.open("ediffi-studio", 1);
    opening.onupgradeneeded = () => {
      opening.result.createObjectStore("kept");
      opening.result.createObjectStore("results", { keyPath: "id" });
    };
    return new Pictures(await answered(opening));
  }

  constructor(database) {
    this.database = database;
  }

  /**
   * Do one thing in an object store; resolves to what it gives, once the browser has it. It is
   * committed at once, so the browser carries it out even if the page is left meanwhile.
   */
  in(name, action) {
    const writes = this.database.transaction(name, "readwrite");
    const request = action(writes.objectStore(name));
    writes.commit();
    return new Promise((resolve, reject) => {
      writes.oncomplete = () => resolve(request.result);
      writes.onabort = () => reject(writes.error);
    });
  }

  get(key) {
    return this.in("kept", (kept) => kept.get(key));
  }

  put(key, value) {
    return this.in("kept", (kept) => kept.put(value, key));
  }

  results() {
    return this.in("results", (results) => results.getAll());
  }

  putResult(result) {
    return this.in("results", (results) => results.put(result));
  }

  /** Remove all of them or, if the browser is interrupted, none. */
  removeResults(ids) {
    return this.in("results", (results) => ids.map((id) => results.delete(id)));
  }
}
