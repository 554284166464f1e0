"""The page. The only rooms that know gradio; importing them imports no torch."""
