-- What a mail server says first. A client that answers is not heard.
local function greet(name, greeting)
    core.register_service(name, "tcp", function(applet)
        applet:send(greeting .. "\r\n")
        applet:getline()
    end)
end

greet("imap", "* OK IMAP ready")
greet("smtp", "220 mail ESMTP")
