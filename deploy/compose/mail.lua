-- Sends a mail server's banner. Waits for one line from the client and ignores it.
local function greet(name, greeting)
    core.register_service(name, "tcp", function(applet)
        applet:send(greeting .. "\r\n")
        applet:getline()
    end)
end

greet("imap", "* OK IMAP ready")
greet("smtp", "220 mail ESMTP")
