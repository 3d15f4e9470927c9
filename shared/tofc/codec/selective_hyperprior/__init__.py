"""The selective hyperprior: TOFC's entropy model as published (arXiv 2503.12926), a hyperprior with chosen experts."""
