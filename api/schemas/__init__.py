"""The wire types: what the API takes and gives, as pydantic models without defaults in answers.

One module per resource; the OpenAPI document and through it the dashboard's types are generated from them.
"""
