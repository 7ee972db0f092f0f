/** Mounts the panel into its section. */
export function mountGallery(state, root) {}
