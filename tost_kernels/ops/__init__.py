"""The ops: one file each, with schema, checks, reference, fake and autograd."""
