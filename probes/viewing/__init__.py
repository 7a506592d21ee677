"""Both models live: a page that asks them, in a browser or in a notebook."""
