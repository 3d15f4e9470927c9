# vllm-router before several vLLM servers, for docker-compose.yml's profile `cluster`: edge_server/router.Dockerfile
# Build from the project's root: docker build --file edge_server/router.Dockerfile .
ARG BASE=python:3.11-slim@sha256:db3ff2e1800a8581e2c48a27c3995339d47bdf046da21c7627accd3d51053a93

FROM ${BASE}
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m pip install vllm-router==0.1.17 && useradd --uid 10001 --create-home router
USER 10001
EXPOSE 8000
# A picture's questions go to one engine: the edge servers name it in x-session-id.
ENTRYPOINT ["vllm-router", "--host=0.0.0.0", "--port=8000", "--policy=consistent_hash"]
