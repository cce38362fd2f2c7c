"""Parts of `synthkd evaluate`: the sets and their features, the classification accuracy score, and the table."""
