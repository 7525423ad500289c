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
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Semaphore};

/// How many may be connected at once.
const CONNECTIONS_MAX: usize = 64;
/// What was counted is told again for so long.
const FRESH: Duration = Duration::from_secs(1);
/// How long one may take to say what it wants, and to be told.
const PATIENCE: Duration = Duration::from_secs(30);
const HELP: &str = "/metrics\tthis node, for Prometheus\n/metrics?all\tall nodes in view\n";

/// Takes the address.
pub(crate) fn listen(addr: SocketAddr) -> Result<TcpListener> {
    let listener = std::net::TcpListener::bind(addr)
        .with_context(|| format!("cannot take HTTP connections on {addr}; give another address with --http"))?;
    listener.set_nonblocking(true)?;
    Ok(TcpListener::from_std(listener)?)
}

/// What was counted, and when.
type Counted = Option<(Instant, Bytes)>;

/// The database, and what was last counted: of this node, and of all.
struct Source {
    db: Database,
    /// Locked while it is counted: those who ask at the same time wait, and are told the same.
    last: [Mutex<Counted>; 2],
}

impl Source {
    async fn counted(&self, all: bool) -> Result<Bytes, client::Error> {
        let mut last = self.last[usize::from(all)].lock().await;
        if let Some((_, text)) = last.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return Ok(text.clone());
        }
        let told = if all { self.db.metrics().await? } else { self.db.own_metrics().await? };
        let text = Bytes::from(procfs::exposition::text(&told));
        *last = Some((Instant::now(), text.clone()));
        Ok(text)
    }
}

/// Takes connections from now on.
pub(crate) fn start(listener: TcpListener, db: Database) {
    tokio::spawn(accept(listener, Arc::new(Source { db, last: Default::default() })));
}

async fn accept(listener: TcpListener, source: Arc<Source>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, most likely: let some be closed.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let source = source.clone();
        tokio::spawn(async move {
            let serve = hyper::service::service_fn(move |request| answer(request, source.clone()));
            let mut http = hyper::server::conn::http1::Builder::new();
            let http = http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false);
            // Whoever does not read what it asked for makes room for others, too.
            let _ = tokio::time::timeout(PATIENCE, http.serve_connection(TokioIo::new(stream), serve)).await;
            drop(permit);
        });
    }
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

async fn answer(request: Request<Incoming>, source: Arc<Source>) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return Ok(text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered\n"));
    }
    let all = match (request.uri().path(), request.uri().query()) {
        ("/", _) => return Ok(text(StatusCode::OK, HELP)),
        ("/metrics", None | Some("")) => false,
        ("/metrics", Some("all")) => true,
        _ => return Ok(text(StatusCode::NOT_FOUND, HELP)),
    };
    Ok(match source.counted(all).await {
        Ok(counted) => text(StatusCode::OK, counted),
        Err(e) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{e}\n")),
    })
}
