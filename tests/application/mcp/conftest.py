from tests.application.server.conftest import open_server as open_server
