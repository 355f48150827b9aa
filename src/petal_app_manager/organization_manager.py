"""See `petalbus.petals.organization`."""

from petalbus.petals.organization import OrganizationManager as OrganizationManager
from petalbus.petals.organization import get_organization_manager as get_organization_manager
from petalbus.petals.organization import set_organization_manager as set_organization_manager
