/** Debian's openssl, which knows no hybrid group, at the broker's port. */
import { spawn } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import t from 'tap'
import { openTestBroker } from '../support/broker.ts'
import { testAuthority } from '../support/pki.ts'

t.test('openssl s_client with X25519 only connects, with AEAD suites only', async (t) => {
  const authority = await testAuthority()
  const broker = await openTestBroker({ authority })
  t.teardown(async () => {
    await broker.close()
    authority.remove()
  })
  const device = await broker.enroll('dev-1')
  const directory = t.testdir({ 'root.pem': authority.rootPem, 'device.pem': device.chainPem })
  writeFileSync(join(directory, 'device.key'), device.keyPem, { mode: 0o600 })
  const pair = [
    '-cert',
    'device.pem',
    '-cert_chain',
    'device.pem',
    '-key',
    'device.key',
    '-CAfile',
    'root.pem',
  ]
  const ask = async (...options: string[]) => {
    const at = ['s_client', '-connect', `127.0.0.1:${broker.port}`, '-servername', 'localhost', '-brief']
    const client = spawn('openssl', [...at, ...pair, ...options], { cwd: directory, timeout: 30_000 })
    client.stdin.end()
    const [out, err] = await Promise.all([text(client.stdout), text(client.stderr)])
    return out + err
  }
  const said = await ask('-groups', 'X25519')
  t.match(said, /Verification: OK/)
  t.match(said, /Server Temp Key: X25519/)
  t.match(await ask('-tls1_2', '-groups', 'P-256'), /Ciphersuite: ECDHE-ECDSA-(AES\d+-GCM|CHACHA20)/)
  t.notMatch(await ask('-tls1_2', '-cipher', 'ECDHE-ECDSA-AES128-SHA256'), /Verification: OK/)
})
