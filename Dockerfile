# syntax=docker/dockerfile:1

# The program. Its dependencies are a layer of their own, built anew only when Cargo.toml or Cargo.lock change.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
# Cargo wants every target that Cargo.toml names to exist.
RUN mkdir -p src benches/webhook \
 && touch src/lib.rs \
 && echo 'fn main() {}' | tee src/main.rs > benches/webhook/main.rs \
 && cargo build --release --locked \
 && rm -r src
# Where the templates are, and what else the sources are built with.
COPY askama.toml ./
COPY migrations migrations
COPY src src
# Cargo goes by time stamps, and COPY keeps those of the sources, which may be older than the build above.
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
