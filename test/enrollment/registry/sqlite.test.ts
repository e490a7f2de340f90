import { join } from 'node:path'
import t from 'tap'
import { openRegistry } from '../../../enrollment/registry/open.ts'
import { registryContract } from '../../contract/registry.ts'
import { BEGIN } from '../../support/registry-plane.ts'

/** So few rows in a turn that whatever is read in slices is read in several. */
const options = { trustDomain: 'plane.test', epoch: 'epoch-1', now: BEGIN, rowsInTurn: 2 }

t.test('the SQLite registry keeps the contract', (t) =>
  registryContract(t, async (t) => {
    const path = join(t.testdir({}), 'registry.db')
    return { open: () => openRegistry(path, options) }
  }),
)
