//! What EC2 and the object stores share: settings and credentials as the vendors' own tools find them, a client for HTTP, and a
//! bounded wait.

use crate::{ANSWER_BYTES_MAX, ANSWER_WAIT, ProviderError};
use futures_util::StreamExt;
use http::{Method, Request};
use object_store::ClientOptions;
use object_store::client::{HttpClient, HttpConnector, HttpRequest, HttpRequestBody, ReqwestConnector};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// The machine's own description of itself, on EC2 and those that do alike.
const METADATA: &str = "http://169.254.169.254";
/// On other machines nobody answers there.
const METADATA_WAIT: Duration = Duration::from_secs(2);

/// Runs what has to wait for others, for so long at most.
pub(crate) fn wait<T>(work: impl Future<Output = Result<T, ProviderError>>) -> Result<T, ProviderError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ProviderError::Thread)?;
    let late = async { tokio::time::timeout(ANSWER_WAIT, work).await.unwrap_or(Err(ProviderError::Late)) };
    runtime.block_on(late)
}

/// What of the environment is text.
pub(crate) fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// Settings by their names in lower case, as the vendors' own tools read them from the environment (`AWS_*`, `GOOGLE_*`,
/// `AZURE_*`) and, for what it does not say, from the profile that `AWS_PROFILE` names.
pub(crate) fn settings(environment: impl Iterator<Item = (String, String)>) -> BTreeMap<String, String> {
    let ours = |name: &String| ["AWS_", "GOOGLE_", "AZURE_"].iter().any(|vendor| name.starts_with(vendor));
    let all: BTreeMap<String, String> =
        environment.filter(|(name, value)| ours(name) || name == "HOME" && !value.is_empty()).collect();
    let file = |variable: &str, beside: &str| {
        let home = || all.get("HOME").map(|home| PathBuf::from(home).join(".aws").join(beside));
        let path = all.get(variable).map(PathBuf::from).or_else(home)?;
        std::fs::read_to_string(path).ok()
    };
    let profile = all.get("AWS_PROFILE").map_or("default", String::as_str).to_string();
    let mut settings: BTreeMap<String, String> =
        all.iter().filter(|(name, _)| ours(name)).map(|(name, value)| (name.to_lowercase(), value.clone())).collect();
    let mut add = |text: Option<String>, section: &str| {
        for (name, value) in text.iter().flat_map(|text| section_of(text, section)) {
            let name = if name == "region" { "aws_region".into() } else { name };
            settings.entry(name).or_insert(value);
        }
    };
    if !all.contains_key("AWS_ACCESS_KEY_ID") {
        add(file("AWS_SHARED_CREDENTIALS_FILE", "credentials"), &profile);
    }
    if !all.contains_key("AWS_REGION") && !all.contains_key("AWS_DEFAULT_REGION") {
        let section = if profile == "default" { profile.clone() } else { format!("profile {profile}") };
        let region = |(name, value): (String, String)| (name == "region").then_some((name, value));
        let text = file("AWS_CONFIG_FILE", "config");
        let found = text.iter().flat_map(|text| section_of(text, &section)).find_map(region);
        settings.extend(found.map(|(_, value)| ("aws_region".to_string(), value)));
    }
    settings
}

/// The lines of one section of an INI file, as the vendor writes them.
fn section_of<'a>(text: &'a str, section: &'a str) -> impl Iterator<Item = (String, String)> + 'a {
    let mut here = false;
    text.lines().filter_map(move |line| {
        let line = line.split(['#', ';']).next().unwrap_or_default().trim();
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            here = name.trim() == section;
        }
        let (name, value) = line.split_once('=').filter(|_| here)?;
        let (name, value) = (name.trim(), value.trim());
        let known = ["aws_access_key_id", "aws_secret_access_key", "aws_session_token", "region"].contains(&name);
        known.then(|| (name.to_string(), value.to_string()))
    })
}

/// The beginning of what the client says is wrong.
pub(crate) fn said(error: &dyn std::error::Error) -> String {
    error.to_string().chars().filter(|c| !c.is_control()).take(300).collect()
}

/// The region, if it is said anywhere but by the machine itself.
pub(crate) fn region(settings: &BTreeMap<String, String>) -> Option<String> {
    settings.get("aws_region").or(settings.get("aws_default_region")).filter(|r| !r.is_empty()).cloned()
}

pub(crate) fn client() -> Result<HttpClient, ProviderError> {
    let options = ClientOptions::new().with_allow_http(true).with_timeout(ANSWER_WAIT);
    ReqwestConnector::default().connect(&options).map_err(|e| ProviderError::Cloud(e.to_string()))
}

/// Sends a request; the body of an answer, or what it complains of.
pub(crate) async fn send(client: &HttpClient, request: HttpRequest) -> Result<String, ProviderError> {
    let answer = client.execute(request).await.map_err(|e| ProviderError::Cloud(said(&e)))?;
    let status = answer.status();
    let (mut body, mut bytes) = (answer.into_body().bytes_stream(), Vec::new());
    while let Some(more) = body.next().await {
        bytes.extend_from_slice(&more.map_err(|e| ProviderError::Cloud(e.to_string()))?);
        if bytes.len() as u64 > ANSWER_BYTES_MAX {
            return Err(ProviderError::TooLong);
        }
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    if status.is_success() {
        return Ok(text);
    }
    let said: String = text.chars().filter(|c| !c.is_control()).take(300).collect();
    Err(ProviderError::Cloud(format!("{status}: {said}")))
}

pub(crate) fn request(
    method: Method,
    url: &str,
    headers: &[(&str, &str)],
    body: String,
) -> Result<HttpRequest, ProviderError> {
    let mut request = Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(HttpRequestBody::from(body)).map_err(|e| ProviderError::Cloud(format!("{url}: {e}")))
}

/// Where the machine describes itself.
pub(crate) fn metadata_endpoint(settings: &BTreeMap<String, String>) -> String {
    let said = settings.get("aws_ec2_metadata_service_endpoint").map(|e| e.trim_end_matches('/').to_string());
    said.filter(|endpoint| !endpoint.is_empty()).unwrap_or_else(|| METADATA.into())
}

/// What the machine says of itself under this path (version 2 of the service: a token first); an error on any other machine.
pub(crate) async fn metadata(client: &HttpClient, endpoint: &str, path: &str) -> Result<String, ProviderError> {
    let ask = async {
        let lives = [("x-aws-ec2-metadata-token-ttl-seconds", "60")];
        let token =
            send(client, request(Method::PUT, &format!("{endpoint}/latest/api/token"), &lives, String::new())?).await?;
        let proves = [("x-aws-ec2-metadata-token", token.trim())];
        send(client, request(Method::GET, &format!("{endpoint}/latest/meta-data/{path}"), &proves, String::new())?)
            .await
    };
    tokio::time::timeout(METADATA_WAIT, ask).await.unwrap_or(Err(ProviderError::Late))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn of(all: &[(&str, &str)]) -> BTreeMap<String, String> {
        settings(all.iter().map(|(name, value)| (name.to_string(), value.to_string())))
    }

    #[test]
    fn credentials_come_from_the_environment_or_a_profile() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(".aws")).unwrap();
        let text = "[default]\naws_access_key_id = A\naws_secret_access_key=S # secret\n[other]\naws_access_key_id=O\n";
        std::fs::write(dir.path().join(".aws/credentials"), text).unwrap();
        std::fs::write(
            dir.path().join(".aws/config"),
            "[default]\nregion = eu-west-1\n[profile other]\nregion=us-west-2\n",
        )
        .unwrap();
        let home = dir.path().to_str().unwrap();
        let found = of(&[("HOME", home), ("PATH", "x")]);
        assert_eq!((found["aws_access_key_id"].as_str(), found["aws_secret_access_key"].as_str()), ("A", "S"));
        assert_eq!((region(&found), found.len()), (Some("eu-west-1".into()), 3));
        let found = of(&[("HOME", home), ("AWS_PROFILE", "other"), ("AWS_REGION", "mars-1")]);
        assert_eq!((found["aws_access_key_id"].as_str(), region(&found)), ("O", Some("mars-1".into())));
        let found = of(&[("HOME", home), ("AWS_ACCESS_KEY_ID", "E"), ("AWS_SECRET_ACCESS_KEY", "T")]);
        assert_eq!((found["aws_access_key_id"].as_str(), found["aws_secret_access_key"].as_str()), ("E", "T"));
        assert_eq!(of(&[("HOME", "/nowhere")]).len(), 0);
    }
}
