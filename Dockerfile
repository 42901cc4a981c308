# syntax=docker/dockerfile:1

# The build. The dependencies are a layer of their own, which is rebuilt only if Cargo.toml or Cargo.lock change.
# `.ci/run` replays the instructions of this stage with `cargo check`.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
# Cargo refuses a manifest unless every target that it names exists: an empty file for each benchmark.
RUN mkdir -p src benches \
 && touch src/lib.rs \
 && echo 'fn main() {}' > src/main.rs \
 && for bench in $(sed -n '/^\[\[bench\]\]/,/^name/ s/^name = "\(.*\)"/\1/p' Cargo.toml); do touch "benches/$bench.rs"; done \
 && cargo build --release --locked \
 && rm -r src
# The templates' folder, the migrations and the sources.
COPY askama.toml ./
COPY migrations migrations
COPY src src
# Cargo compares time stamps, and COPY keeps those of the sources, which may be older than the build above.
RUN touch src/lib.rs src/main.rs \
 && cargo build --release --locked

FROM debian:bookworm-slim
# For TLS to Stripe and to PostgreSQL.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /src/target/release/subledger /usr/local/bin/subledger
USER 65532:65532
ENV BIND_ADDR=0.0.0.0:8080
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["subledger", "health"]
ENTRYPOINT ["subledger"]
CMD ["serve"]
