"""One router per resource; `api.app` puts them together."""
