"""Is a PyTorch sequence model causal, private per stream, and the same function however its input is cut?"""

from titans_core.audit.audit import audit as audit
from titans_core.audit.factory import AuditError as AuditError
from titans_core.audit.factory import build as build
from titans_core.audit.noise import Budget as Budget
from titans_core.audit.report import Report as Report
from titans_core.audit.report import Verdict as Verdict
from titans_core.audit.subject import Inputs as Inputs
from titans_core.audit.subject import Subject as Subject
from titans_core.audit.subject import examine as examine
