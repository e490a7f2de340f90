import { join } from 'node:path'
import t from 'tap'
import { openRegistry } from '../../../enrollment/registry/open.ts'
import { registryContract } from '../../contract/registry.ts'
import { BEGIN } from '../../support/registry-plane.ts'

const options = { trustDomain: 'plane.test', epoch: 'epoch-1', now: BEGIN }

t.test('the SQLite registry keeps the contract', (t) =>
  registryContract(t, async (t) => {
    const path = join(t.testdir({}), 'registry.db')
    return { open: () => openRegistry(path, options) }
  }),
)
