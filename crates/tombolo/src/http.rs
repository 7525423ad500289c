//! `up --http`: what is counted, for a Prometheus that comes and asks.

use anyhow::{Context, Result};
use client::Database;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// How many may be connected at once.
const CONNECTIONS_MAX: usize = 64;
/// How long one may take to say what it wants, and stay without wanting anything.
const PATIENCE: Duration = Duration::from_secs(30);
const HELP: &str = "/metrics\tthis node, for Prometheus\n/metrics?all\tall nodes in view\n";

/// Takes connections from now on.
pub(crate) fn start(addr: SocketAddr, db: Database) -> Result<SocketAddr> {
    let listener = std::net::TcpListener::bind(addr)
        .with_context(|| format!("cannot take HTTP connections on {addr}; give another address with --http"))?;
    listener.set_nonblocking(true)?;
    let addr = listener.local_addr()?;
    tokio::spawn(accept(TcpListener::from_std(listener)?, db));
    Ok(addr)
}

async fn accept(listener: TcpListener, db: Database) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, most likely: let some be closed.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let db = db.clone();
        tokio::spawn(async move {
            let serve = hyper::service::service_fn(move |request| answer(request, db.clone()));
            let mut http = hyper::server::conn::http1::Builder::new();
            let connection = http.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
            let _ = connection.serve_connection(TokioIo::new(stream), serve).await;
            drop(permit);
        });
    }
}

fn text(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

async fn answer(request: Request<Incoming>, db: Database) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return Ok(text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered\n".into()));
    }
    let all = match (request.uri().path(), request.uri().query()) {
        ("/", _) => return Ok(text(StatusCode::OK, HELP.into())),
        ("/metrics", None | Some("")) => false,
        ("/metrics", Some("all")) => true,
        _ => return Ok(text(StatusCode::NOT_FOUND, HELP.into())),
    };
    let told = if all { db.metrics().await } else { db.own_metrics().await };
    Ok(match told {
        Ok(told) => text(StatusCode::OK, procfs::exposition::text(&told)),
        Err(e) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{e}\n")),
    })
}
