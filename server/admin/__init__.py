"""The admin API's routes, one module a resource, and their wire types."""
