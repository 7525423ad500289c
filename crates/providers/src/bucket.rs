//! One small object for each node in a bucket, of any store that speaks S3, or of GCS or Azure. Its name says where the node is, so
//! that one listing, page by page, tells of all. It is written again now and then, and taken away at a clean stop; one that was
//! not written for a day is of a node that died, and is passed over.

use crate::cloud::{environment, settings, wait};
use crate::{Me, ProviderError};
use base::NodeId;
use futures_util::TryStreamExt;
use membership::Place;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, parse_url_opts};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};
use url::Url;

/// One that was not written for so long is passed over.
const FRESH_FOR: Duration = Duration::from_secs(24 * 3600);
/// How often it is written again.
pub(crate) const WRITE_EVERY: Duration = Duration::from_secs(3600);

/// Reads `s3://BUCKET/PREFIX`, `gs://...`, `az://...`, or a bucket's name for S3.
pub(crate) fn read(text: &str) -> Option<Url> {
    let full = if text.contains("://") { text.to_string() } else { format!("s3://{text}") };
    let url = Url::parse(&full).ok()?;
    let known = ["s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "https", "http"].contains(&url.scheme());
    // What opens the store is said in the environment, and not shown.
    let plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
    (known && plain && url.has_host()).then_some(url)
}

fn open(url: &Url) -> Result<(Box<dyn ObjectStore>, Path), ProviderError> {
    let mut settings = settings(environment());
    let plain = ["aws_endpoint_url_s3", "aws_endpoint_url", "aws_endpoint"];
    let endpoint = plain.iter().find_map(|name| settings.get(*name)).cloned();
    if let Some(endpoint) = endpoint {
        if endpoint.starts_with("http://") {
            settings.insert("aws_allow_http".into(), "true".into());
        }
        settings.insert("aws_endpoint".into(), endpoint);
    }
    parse_url_opts(url, settings).map_err(|e| ProviderError::Cloud(crate::cloud::said(&e)))
}

/// The name of a node's object: its id and where it is.
fn name_of(me: &Me) -> String {
    // Colons are not what every store likes in a name.
    format!("{}_{}_{}", me.node, me.addr.ip().to_string().replace(':', "-"), me.addr.port())
}

fn place_of(name: &str) -> Option<(NodeId, SocketAddr)> {
    let mut parts = name.split('_');
    let (node, ip, port) = (parts.next()?, parts.next()?, parts.next()?.parse().ok()?);
    let ip = ip.parse().or_else(|_| ip.replace('-', ":").parse()).ok()?;
    let node = NodeId(u64::from_str_radix(node, 16).ok()?);
    parts.next().is_none().then_some((node, SocketAddr::new(ip, port)))
}

/// Writes this node's object if it is time, and lists all.
pub(crate) fn ask(url: &Url, me: &Me, write: bool) -> Result<Vec<Place>, ProviderError> {
    let wrong = |e: object_store::Error| ProviderError::Cloud(crate::cloud::said(&e));
    wait(async {
        let (store, prefix) = open(url)?;
        if write {
            let text = format!("{} {}\n", me.node, me.addr);
            store.put(&prefix.clone().join(name_of(me)), PutPayload::from(text)).await.map_err(wrong)?;
        }
        let now = SystemTime::now();
        let (mut places, mut listed) = (Vec::new(), store.list(Some(&prefix)));
        while let Some(object) = listed.try_next().await.map_err(wrong)? {
            let age = now.duration_since(SystemTime::from(object.last_modified)).unwrap_or_default();
            let found = object.location.filename().and_then(place_of).filter(|(node, _)| *node != me.node);
            if let Some((_, addr)) = found.filter(|_| age < FRESH_FOR) {
                places.push(Place { ip: addr.ip(), port: Some(addr.port()) });
            }
        }
        Ok(places)
    })
}

/// Takes this node's object away.
pub(crate) fn withdraw(url: &Url, me: &Me) -> Result<(), ProviderError> {
    wait(async {
        let (store, prefix) = open(url)?;
        let gone = store.delete(&prefix.join(name_of(me))).await;
        gone.map_err(|e| ProviderError::Cloud(crate::cloud::said(&e)))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_say_where_nodes_are() {
        for addr in ["10.0.0.1:7474", "[fe80::1]:80"] {
            let me = Me { node: NodeId(0xabc), addr: addr.parse().unwrap() };
            assert_eq!(place_of(&name_of(&me)), Some((me.node, me.addr)));
        }
        for name in ["", "a", "zz_10.0.0.1_1", "1_10.0.0.1_x", "1_10.0.0.1_1_2", "1_nowhere_1"] {
            assert_eq!(place_of(name), None, "{name}");
        }
    }

    #[test]
    fn buckets_are_named_by_their_urls() {
        assert_eq!(read("nodes/ours").unwrap().as_str(), "s3://nodes/ours");
        assert_eq!(read("gs://nodes/ours").unwrap().as_str(), "gs://nodes/ours");
        assert!(
            ["", "ftp://x/y", "s3://", "s3://me:secret@x/y", "az://x/y?sig=z"].iter().all(|text| read(text).is_none())
        );
    }
}
