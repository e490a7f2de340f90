import { BOOTSTRAP } from './schema-bootstrap.ts'
import { CLAIMS } from './schema-claims.ts'
import { CLONES } from './schema-clones.ts'
import { EVENTS } from './schema-events.ts'
import { INFRASTRUCTURE_ISSUERS } from './schema-infrastructure.ts'
import { LISTED_SERIALS } from './schema-listed-serials.ts'
import { POLICIES } from './schema-policies.ts'
import { PROFILES } from './schema-profiles.ts'
import { PURGE_ORDERS } from './schema-purge-orders.ts'
import { PURGES } from './schema-purges.ts'
import { REQUEST_KEYS } from './schema-request-keys.ts'
import { SECOND_FACTORS } from './schema-second-factors.ts'
import { SERVER_KEYS } from './schema-server-keys.ts'
import { STRANGERS } from './schema-strangers.ts'
import { TRUST_BUNDLE } from './schema-trust.ts'

/** The versions after the third, each in a file of its subject: the end of `MIGRATIONS`. */
export const LATER: readonly string[] = [
  PROFILES,
  BOOTSTRAP,
  TRUST_BUNDLE,
  CLAIMS,
  SERVER_KEYS,
  INFRASTRUCTURE_ISSUERS,
  CLONES,
  POLICIES,
  EVENTS,
  SECOND_FACTORS,
  STRANGERS,
  PURGES,
  REQUEST_KEYS,
  LISTED_SERIALS,
  PURGE_ORDERS,
]
