"""Networks whose features describe pictures, by the names in a spec's ``evaluate.features``."""
