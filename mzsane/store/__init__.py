"""Where artifacts are kept: storage, manifests, partial work, verified copies, what killed runs leave."""
