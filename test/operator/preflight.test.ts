import { once } from 'node:events'
import { chmodSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import type { AddressInfo } from 'node:net'
import { createServer } from 'node:net'
import { join } from 'node:path'
import t from 'tap'
import { makeDirectory } from '#shared/directory'
import { checkPorts, prepareDirectory } from '../../operator/preflight.ts'
import { freePortBase } from '../support/muster.ts'

t.test('a data directory that everybody may write to is not used', async (t) => {
  const path = join(t.testdir({ data: {} }), 'data')
  for (const mode of [0o777, 0o1777, 0o702]) {
    chmodSync(path, mode)
    t.throws(() => prepareDirectory(path), { code: 'directory_unusable', message: /chmod o-w/ })
  }
  for (const mode of [0o700, 0o755, 0o775]) {
    chmodSync(path, mode)
    prepareDirectory(path)
  }
  const made = join(path, 'new')
  prepareDirectory(made)
  t.equal(statSync(made).mode & 0o777, 0o700)
})

t.test('where no directory can be made, it says so in a sentence', async (t) => {
  const base = t.testdir()
  writeFileSync(join(base, 'file'), '')
  symlinkSync(join(base, 'nowhere'), join(base, 'link'))
  const places: [string, RegExp][] = [
    [join(base, 'file'), /a file has that name/],
    [join(base, 'file', 'below', 'it'), /a part of it is a file/],
    [join(base, 'link'), /a file has that name/],
  ]
  // where Node's own recursive mkdir goes on for ever
  if (process.platform === 'linux') places.push(['/proc/muster/data', /no directory can be made there/])
  for (const [path, says] of places) {
    t.throws(() => prepareDirectory(path), { code: 'directory_unusable', message: says }, path)
  }
  t.throws(() => makeDirectory(join(base, 'file'), '--journal'), {
    message: /choose another with --journal$/,
  })
  makeDirectory(join(base, 'a', 'b', 'c'))
  for (const path of ['a', 'a/b', 'a/b/c']) t.equal(statSync(join(base, path)).mode & 0o777, 0o700, path)
  makeDirectory(join(base, 'a', 'b', 'c'))
})

t.test('ports that are asked for as well are looked at before anything starts', async (t) => {
  const base = await freePortBase()
  const webSocket = { use: 'MQTT over WebSocket', address: '127.0.0.1' }
  await checkPorts(base, '127.0.0.1', [{ ...webSocket, port: 0 }])
  await t.rejects(checkPorts(base, '127.0.0.1', [{ ...webSocket, port: base + 883 }]), {
    code: 'config_invalid',
    message: /for MQTT over WebSocket: it is that of the broker$/,
  })
  const server = createServer().listen(0, '127.0.0.1')
  t.teardown(() => server.close())
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo // of a server that listens on TCP
  await t.rejects(checkPorts(base, '127.0.0.1', [{ ...webSocket, port }]), {
    code: 'port_taken',
    message: /for MQTT over WebSocket: something listens there already/,
  })
})
