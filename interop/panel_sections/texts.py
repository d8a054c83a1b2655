"""Answers that clients compare, and other words that several sections need."""

SCOPE = {"error": "Insufficient certificate scope", "details": {"required": ["admin"], "current": "agent"}}
INVALID_CSR = {"error": "Invalid CSR: structure or signature verification failed"}
CSR_TOO_LARGE = {"error": "CSR too large"}
TOO_LARGE = {"error": "Request body is too large"}
TOKEN_UNKNOWN = {"error": "Invalid enrollment token"}
TOKEN_USED = {"error": "Enrollment token has already been used"}
TOKEN_EXPIRED = {"error": "Enrollment token has expired"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
EMPTY_JSON = {"Content-Type": "application/json"}
NOTICE = (
    "Your current browser certificate is now invalid. Download and import the new certificate before closing this page."
)
ROTATION_GONE = (
    "P12 certificate rotation is disabled. Admin uses hardware-bound authentication."
    " Use portlama-reset-admin on the server to revert."
)
DOWNLOAD_GONE = ROTATION_GONE.replace("rotation", "download")
NO_CA_KEY = {"error": "CA key not found — cannot sign new certificate"}
CAPABILITIES = "tunnels:read tunnels:write services:read services:write system:read sites:read sites:write".split()
NO_SUCH_TOKEN = "0" * 64
NOBODY = 65534
EMPTY_CSR = ((["csr"], "CSR is required"), (["csr"], "CSR must be PEM-encoded"))
NO_CSR = "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"
HARDWARE_BOUND = {"error": "Admin is already using hardware-bound authentication"}
