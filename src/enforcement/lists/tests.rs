use super::*;
use crate::enforcement::follower::Place as _;
use crate::enforcement::published::PublishedPlace;
use banmesh_core::follow::Allowlist;

#[test]
fn the_key_is_the_password_of_a_login_or_a_bearer_token() {
    let read = |value: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        password(&headers).map(|key| String::from_utf8(key).unwrap())
    };
    let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
    assert_eq!(read(&basic("any:secret")).as_deref(), Some("secret"));
    assert_eq!(read(&basic(":se:cret")).as_deref(), Some("se:cret"));
    assert_eq!(read("bearer secret").as_deref(), Some("secret"));
    for wrong in [basic("secret"), "Basic !".to_owned(), "Digest x".to_owned(), "secret".to_owned()] {
        assert_eq!(read(&wrong), None, "{wrong}");
    }
    assert_eq!(password(&HeaderMap::new()), None);
}

#[tokio::test]
async fn a_list_is_written_in_parts_and_a_limit_keeps_what_lasts_longest() {
    let bans = PublishedBans::default();
    let mut place = PublishedPlace::new(bans.clone());
    let now = clock::now().second();
    let count = u32::try_from(2 * PAGE + 1).unwrap();
    let address = |number: u32| Target::host(std::net::IpAddr::V4((0x0a00_0000 + number).into()).into());
    place.begin(&Allowlist::default()).await.unwrap();
    place.fill((0..count).map(|number| (address(number), now + 1000 + number)).collect()).await.unwrap();
    place.commit().await.unwrap();
    let snapshot = bans.snapshot().await;
    let parts = |list, limit| {
        let mut written = Written::new(Arc::clone(&snapshot), list, limit);
        std::iter::from_fn(move || written.next()).collect::<Vec<String>>()
    };
    let all = parts(List::Ipv4, None);
    assert_eq!((all.len(), all.concat().lines().count()), (3, 2 * PAGE + 1));
    assert_eq!(parts(List::Ipv6, None).concat(), "# no bans\n");
    let last = [count - 1, count - 2].map(|number| format!("{}\n", address(number))).concat();
    assert_eq!(parts(List::All, Some(2)).concat(), last);
    assert_eq!(parts(List::Mikrotik, Some(0)).concat().lines().count(), 2, "it empties both lists");
}
