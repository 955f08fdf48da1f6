# The build keeps crates and compiled dependencies in cache mounts (BuildKit, Docker's default builder): a change of the
# sources compiles the sources only.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /build
# What .dockerignore lets through. Tests and benches are named by Cargo.toml, so they must be there, but are not built.
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/build/target,sharing=locked \
    CARGO_PROFILE_RELEASE_STRIP=debuginfo cargo build --release --locked --bin leadpost \
    && cp target/release/leadpost /leadpost

FROM debian:bookworm-slim
LABEL org.opencontainers.image.title="leadpost" \
      org.opencontainers.image.description="Posts leads from RabbitMQ to a lead API, and keeps a ledger in Postgres of what became of each"
# The CA certificates come from the build image, so that this stage installs nothing and needs no network.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /leadpost /usr/local/bin/leadpost
# A leadpost.toml mounted into this folder is read.
WORKDIR /etc/leadpost
# What `leadpost run` would otherwise start itself once more for (README, Limits).
ENV RUST_MIN_STACK=67108864
USER 10001:10001
EXPOSE 9090
# SIGTERM drains: give it more time than shutdown.grace_ms (40 s) before the kill.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["leadpost", "healthcheck"]
ENTRYPOINT ["leadpost"]
CMD ["run"]
