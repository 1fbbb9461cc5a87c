"""The bank: an encoder, an index and the path that joins them to the ledger. Importing it loads no heavy library."""
