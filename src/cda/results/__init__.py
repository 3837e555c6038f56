"""From run JSONs to tables and figures."""
