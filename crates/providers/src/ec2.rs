//! EC2: the instances with a tag or in a security group (DescribeInstances, version 2016-11-15). It knows which machines there
//! should be: one that is stopped is, one that is terminated is not.

use crate::cloud::{client, environment, metadata, metadata_endpoint, region, request, send, settings, wait};
use crate::{ANSWER_WAIT, ProviderError, Source};
use http::Method;
use membership::Place;
use object_store::RetryConfig;
use object_store::aws::{AmazonS3Builder, AwsAuthorizer, AwsCredential};
use object_store::client::HttpClient;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use url::form_urlencoded;

/// How many instances a page has: some kilobytes each.
const PAGE: &str = "100";
/// How often it is asked again which role the machine has. On one without a role every attempt fails, and there must be time
/// left to say so.
const ROLE_RETRIES_MAX: usize = 3;
/// More pages of instances than this are no answer.
const PAGES_MAX: usize = 200;

/// Which instances.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Instances {
    /// Those that have all of these tags.
    pub tags: Vec<(String, String)>,
    /// Those in any of these security groups, by name or by id (`sg-...`).
    pub groups: Vec<String>,
    /// Of this region; `None`: this machine's.
    pub region: Option<String>,
    /// Asked there, instead of at the vendor's.
    pub endpoint: Option<String>,
    /// The port of every node.
    pub port: Option<u16>,
}

impl Instances {
    /// Reads `tag=NAME=VALUE`, `group=NAME`, `region=R`, `endpoint=URL` and `port=N`, separated by commas.
    pub(crate) fn read(text: &str) -> Option<Instances> {
        let mut all = Instances::default();
        for part in text.split(',') {
            let (name, value) = part.split_once('=').filter(|(_, value)| !value.is_empty())?;
            match name {
                "tag" => all.tags.push(value.split_once('=').map(|(tag, value)| (tag.into(), value.into()))?),
                "group" => all.groups.push(value.into()),
                "region" => all.region = Some(value.into()),
                "endpoint" => all.endpoint = Some(value.trim_end_matches('/').into()),
                "port" => all.port = Some(value.parse().ok()?),
                _ => return None,
            }
        }
        (!all.tags.is_empty() || !all.groups.is_empty()).then_some(all)
    }
}

impl std::fmt::Display for Instances {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tags = self.tags.iter().map(|(tag, value)| format!("tag={tag}={value}"));
        let groups = self.groups.iter().map(|group| format!("group={group}"));
        let region = self.region.iter().map(|region| format!("region={region}"));
        let endpoint = self.endpoint.iter().map(|endpoint| format!("endpoint={endpoint}"));
        let port = self.port.iter().map(|port| format!("port={port}"));
        let all: Vec<String> = tags.chain(groups).chain(region).chain(endpoint).chain(port).collect();
        f.write_str(&all.join(","))
    }
}

pub(crate) fn ask(which: &Instances) -> Result<Vec<Place>, ProviderError> {
    wait(async {
        let settings = settings(environment());
        let client = client()?;
        list(&client, &settings, which).await
    })
}

/// On EC2 the instances of this one's security groups; elsewhere none, and multicast finds the others.
pub(crate) fn ask_here() -> Result<Vec<Place>, ProviderError> {
    wait(async {
        let settings = settings(environment());
        let client = client()?;
        let Ok(groups) = metadata(&client, &metadata_endpoint(&settings), "security-groups").await else {
            return Ok(Vec::new());
        };
        let groups = groups.lines().map(str::trim).filter(|g| !g.is_empty()).map(Into::into).collect();
        list(&client, &settings, &Instances { groups, ..Instances::default() }).await
    })
}

async fn list(
    client: &HttpClient,
    settings: &BTreeMap<String, String>,
    which: &Instances,
) -> Result<Vec<Place>, ProviderError> {
    let here = metadata_endpoint(settings);
    let region = match which.region.clone().or_else(|| region(settings)) {
        Some(region) => region,
        None => metadata(client, &here, "placement/region").await.map_err(|_| ProviderError::Region)?.trim().into(),
    };
    let credential = credential(settings, &region, &here).await?;
    let said = which.endpoint.clone().or_else(|| settings.get("aws_endpoint_url_ec2").cloned());
    let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
    let endpoint = said.unwrap_or_else(|| format!("https://ec2.{region}.{domain}"));
    let (mut places, mut token) = (Vec::new(), None);
    for _ in 0..PAGES_MAX {
        let headers = [("content-type", "application/x-www-form-urlencoded; charset=utf-8")];
        let mut request = request(Method::POST, &format!("{endpoint}/"), &headers, query(which, token.as_deref()))?;
        let signed = AwsAuthorizer::new(&credential, "ec2", &region).try_authorize(&mut request, None);
        signed.map_err(|e| ProviderError::Credentials(crate::cloud::said(&e)))?;
        let answer: Answer = quick_xml::de::from_str(&send(client, request).await?)
            .map_err(|e| ProviderError::Cloud(format!("the answer makes no sense: {e}")))?;
        let instances = answer.reservations.item.into_iter().flat_map(|r| r.instances.item);
        places.extend(instances.filter_map(|instance| instance.place(which.port)));
        token = answer.next.filter(|token| !token.is_empty());
        if token.is_none() {
            return Ok(places);
        }
    }
    Err(ProviderError::TooLong)
}

/// From the environment or a profile, or what the machine was given.
async fn credential(
    settings: &BTreeMap<String, String>,
    region: &str,
    metadata: &str,
) -> Result<Arc<AwsCredential>, ProviderError> {
    let wrong = |e: object_store::Error| ProviderError::Credentials(crate::cloud::said(&e));
    let known = settings.iter().filter_map(|(name, value)| Some((name.parse().ok()?, value)));
    let builder = known.fold(AmazonS3Builder::new(), |builder, (name, value)| builder.with_config(name, value));
    let retry = RetryConfig { max_retries: ROLE_RETRIES_MAX, retry_timeout: ANSWER_WAIT, ..RetryConfig::default() };
    let builder =
        builder.with_bucket_name("none").with_region(region).with_metadata_endpoint(metadata).with_retry(retry);
    builder.build().map_err(wrong)?.credentials().get_credential().await.map_err(wrong)
}

fn query(which: &Instances, token: Option<&str>) -> String {
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.append_pair("Action", "DescribeInstances").append_pair("Version", "2016-11-15");
    form.append_pair("MaxResults", PAGE);
    let (ids, names): (Vec<_>, Vec<_>) = which.groups.iter().cloned().partition(|group| group.starts_with("sg-"));
    let states = ["pending", "running", "stopping", "stopped"].map(String::from).to_vec();
    let tags = which.tags.iter().map(|(tag, value)| (format!("tag:{tag}"), vec![value.clone()]));
    let rest = [("instance.group-id", ids), ("instance.group-name", names), ("instance-state-name", states)];
    let rest =
        rest.into_iter().filter(|(_, values)| !values.is_empty()).map(|(name, values)| (name.to_string(), values));
    for (f, (name, values)) in (1..).zip(tags.chain(rest)) {
        form.append_pair(&format!("Filter.{f}.Name"), &name);
        for (v, value) in (1..).zip(values) {
            form.append_pair(&format!("Filter.{f}.Value.{v}"), &value);
        }
    }
    if let Some(token) = token {
        form.append_pair("NextToken", token);
    }
    form.finish()
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "reservationSet", default)]
    reservations: Items<Reservation>,
    #[serde(rename = "nextToken")]
    next: Option<String>,
}

#[derive(Deserialize)]
struct Items<T> {
    #[serde(default = "Vec::new")]
    item: Vec<T>,
}

impl<T> Default for Items<T> {
    fn default() -> Self {
        Items { item: Vec::new() }
    }
}

#[derive(Deserialize)]
struct Reservation {
    #[serde(rename = "instancesSet", default)]
    instances: Items<Instance>,
}

#[derive(Deserialize)]
struct Instance {
    #[serde(rename = "privateIpAddress")]
    ip: Option<String>,
}

impl Instance {
    fn place(self, port: Option<u16>) -> Option<Place> {
        Some(Place { ip: self.ip?.parse().ok()?, port })
    }
}

impl Source {
    /// Can it tell one that should exist from one that is gone?
    pub fn knows_who_is_gone(&self) -> bool {
        !matches!(self, Source::Bucket(_) | Source::Auto)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_names_every_filter() {
        let which = Instances::read("tag=role=a b,group=sg-1,group=web,port=7000").unwrap();
        assert_eq!(which.to_string(), "tag=role=a b,group=sg-1,group=web,port=7000");
        let text = query(&which, Some("more"));
        for part in [
            "Filter.1.Name=tag%3Arole",
            "Filter.1.Value.1=a+b",
            "Filter.2.Name=instance.group-id",
            "Filter.3.Value.1=web",
            "NextToken=more",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        for text in ["", "tag", "tag=role", "port=1", "group=", "group=a,port=x", "zone=a"] {
            assert_eq!(Instances::read(text), None, "{text}");
        }
    }
}
