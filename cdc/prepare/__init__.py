"""From a row's cells to the text that is embedded, and the hash that says whether it has changed."""
