"""A FastAPI service that embeds the runtime. Run it as

    ARTIFACT=dlrm.rr uvicorn fastapi_service:app --app-dir examples

and ask: curl localhost:8000/score -H 'content-type: application/json' \\
    -d '{"inputs": {"dense": [[...]], "ids_0": [[...]], ...}}'
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel

from recreplay.runtime import InputError, Runtime, Serving
from recreplay.runtime.errors import DeadlineExceeded, Overloaded


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    serving = Serving(lanes=2, max_delay_us=500, max_queue=256, deadline_us=50_000)
    with Runtime.load(os.environ["ARTIFACT"], serving=serving) as app.state.runtime:
        yield  # leaving the block answers what was accepted


app = FastAPI(lifespan=lifespan)


class Query(BaseModel):
    inputs: dict[str, list[Any]]


@app.post("/score")
async def score(query: Query, request: Request) -> dict[str, list[Any]]:
    try:
        outputs = await request.app.state.runtime.arun(query.inputs)
    except InputError as error:
        raise HTTPException(422, str(error)) from error
    except (Overloaded, DeadlineExceeded) as error:
        raise HTTPException(503, str(error)) from error
    return {name: array.tolist() for name, array in outputs.items()}
