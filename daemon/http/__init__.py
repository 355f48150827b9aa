"""HTTP for petals: routes, websockets, files, one merged description, and what guards them.

Nothing here loads FastAPI or uvicorn when it is imported: the part does, in a thread, after the bus is ready.
"""
